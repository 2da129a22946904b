"""Writes golden.gguf with the published `gguf` package (pip install gguf numpy): one value of every metadata
type and one tensor of each of four types. The Rust tests know what must come out.

Usage: python golden.py golden.gguf
"""

import sys

import numpy as np
from gguf import GGMLQuantizationType, GGUFValueType, GGUFWriter
from gguf.quants import quantize

writer = GGUFWriter(sys.argv[1], "smallthinker")
writer.add_name("golden – élan")
writer.add_uint8("t.u8", 200)
writer.add_int8("t.i8", -100)
writer.add_uint16("t.u16", 60000)
writer.add_int16("t.i16", -30000)
writer.add_uint32("t.u32", 4000000000)
writer.add_int32("t.i32", -2000000000)
writer.add_float32("t.f32", 0.15625)
writer.add_bool("t.true", True)
writer.add_bool("t.false", False)
writer.add_uint64("t.u64", 2**63 + 1)
writer.add_int64("t.i64", -(2**62))
writer.add_float64("t.f64", 1e300)
writer.add_array("t.strings", ["a", "", "Ġmerge ĠĠ", "日本"])
writer.add_array("t.ints", [1, -2, 3])
writer.add_array("t.floats", [0.5, -1.25])
writer.add_array("t.bools", [True, False, True])
writer.add_key_value("t.u8s", bytes([1, 2, 255]), GGUFValueType.ARRAY, GGUFValueType.UINT8)

ramp = np.arange(64, dtype=np.float32).reshape(2, 32) / 8 - 4
writer.add_tensor("ramp.f32", ramp[:, :5].copy())
writer.add_tensor("ramp.f16", ramp.reshape(2, 4, 8).astype(np.float16))
for kind in (GGMLQuantizationType.Q8_0, GGMLQuantizationType.Q4_0):
    writer.add_tensor(f"ramp.{kind.name.lower()}", quantize(ramp, kind), raw_dtype=kind)
writer.write_header_to_file()
writer.write_kv_data_to_file()
writer.write_tensors_to_file()
writer.close()

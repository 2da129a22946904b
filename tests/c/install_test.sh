#!/bin/sh
# Installs the library into a temporary folder and builds programs against it as a user would:
#
#     tests/c/install_test.sh MODEL.gguf
#
# With pkg-config and, where cmake is found, with CMake. Variables: CC, CARGO_TARGET_DIR, CMAKE.
set -eu

[ $# -eq 1 ] || { echo "usage: $0 MODEL.gguf" >&2; exit 2; }
model=$(realpath "$1")
root=$(cd "$(dirname "$0")/../.." && pwd)
cc=${CC:-cc}
cmake=${CMAKE:-cmake}
out=$(mktemp -d)
trap 'rm -rf "$out"' EXIT

"$root/smallthinker-ffi/install.sh" "$out/prefix"
export PKG_CONFIG_PATH="$out/prefix/lib/pkgconfig"
version=$(pkg-config --modversion smallthinker)
check() {
    "$@" "$model" "Once upon a time" 16 > "$out/ids"
    [ -s "$out/first" ] || cp "$out/ids" "$out/first"
    cmp "$out/first" "$out/ids"
}

echo "# pkg-config, shared"
$cc -std=c11 -o "$out/shared" "$root/tests/c/test_api.c" $(pkg-config --cflags --libs smallthinker) \
    -lpthread -lm
LD_LIBRARY_PATH="$out/prefix/lib" check "$out/shared"
# A program must ask for the interface it was built with, not for any file of that name.
abi=$(sed -n 's/^#define ST_ABI_VERSION //p' "$out/prefix/include/smallthinker.h")
readelf -d "$out/shared" | grep -q "NEEDED.*\[libsmallthinker.so.$abi\]"

echo "# pkg-config, static"
mkdir "$out/only-static"
cp "$out/prefix/lib/libsmallthinker.a" "$out/only-static"
$cc -std=c11 -o "$out/static" "$root/tests/c/test_api.c" $(pkg-config --cflags smallthinker) \
    -L"$out/only-static" $(pkg-config --static --libs smallthinker) -lpthread -lm
check "$out/static"
if readelf -d "$out/static" | grep -q libsmallthinker; then
    echo "linked to the shared library" >&2
    exit 1
fi

if ! command -v "$cmake" > /dev/null; then
    echo "# CMake: skipped, cmake was not found"
    exit 0
fi
echo "# CMake"
{
    "$cmake" -S "$root/tests/c/cmake" -B "$out/build" -DCMAKE_PREFIX_PATH="$out/prefix" &&
        "$cmake" --build "$out/build"
} > "$out/log" || { cat "$out/log"; exit 1; }
check "$out/build/api_smallthinker"
check "$out/build/api_static"

# Other series are refused, the present one in every spelling accepted.
wants() {
    mkdir -p "$out/wants"
    {
        echo "cmake_minimum_required(VERSION 3.13)"
        echo "project(wants C)"
        echo "find_package(smallthinker $1 REQUIRED)"
    } > "$out/wants/CMakeLists.txt"
    rm -rf "$out/wants/b"
    "$cmake" -S "$out/wants" -B "$out/wants/b" -DCMAKE_PREFIX_PATH="$out/prefix" > "$out/log" 2>&1
}
for good in "" "${version%.*}" "$version" "$version EXACT"; do
    wants "$good" || { echo "find_package(smallthinker $good) failed" >&2; cat "$out/log"; exit 1; }
done
for bad in 99 99.0 "${version%%.*}.99" "$version.1"; do
    if wants "$bad"; then echo "find_package(smallthinker $bad) found $version" >&2; exit 1; fi
done
echo "# All passed; greedy tokens:"
cat "$out/first"

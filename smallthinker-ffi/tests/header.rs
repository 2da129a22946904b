//! The committed header is what the source says. `ST_UPDATE_HEADER=1` writes it anew.

use std::collections::BTreeSet;
use std::error::Error;
use std::path::{Path, PathBuf};
use std::{env, fs};

/// In the order of the header.
const SOURCES: [&str; 7] = ["version", "status", "options", "stats", "model", "session", "generate"];

fn crate_dir() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

fn header_path() -> PathBuf {
    crate_dir().join("../include/smallthinker.h")
}

fn generate() -> Result<String, Box<dyn Error>> {
    let dir = crate_dir();
    let mut config = cbindgen::Config::from_file(dir.join("cbindgen.toml"))?;
    config.header = Some(fs::read_to_string(dir.join("header_intro.txt"))?.trim_end().to_owned());
    let version = env!("CARGO_PKG_VERSION");
    let mut defines = format!("\n/** Version of this header. */\n#define ST_VERSION \"{version}\"");
    for (name, part) in ["MAJOR", "MINOR", "PATCH"].iter().zip(version.split(['.', '-'])) {
        defines += &format!("\n#define ST_VERSION_{name} {part}");
    }
    config.after_includes = Some(defines);
    let mut builder = cbindgen::Builder::new().with_config(config);
    for source in SOURCES {
        builder = builder.with_src(dir.join(format!("src/{source}.rs")));
    }
    let mut text = Vec::new();
    builder.generate()?.write(&mut text);
    Ok(String::from_utf8(text)?)
}

#[test]
fn header_is_up_to_date() -> Result<(), Box<dyn Error>> {
    let generated = generate()?;
    if env::var_os("ST_UPDATE_HEADER").is_some() {
        fs::write(header_path(), &generated)?;
    }
    let committed = fs::read_to_string(header_path())?;
    for (i, (c, g)) in committed.lines().zip(generated.lines()).enumerate() {
        assert_eq!(c, g, "line {}; ST_UPDATE_HEADER=1 writes the header anew", i + 1);
    }
    assert_eq!(committed, generated, "ST_UPDATE_HEADER=1 writes the header anew");
    Ok(())
}

#[test]
fn header_has_the_version_of_the_crate() -> Result<(), Box<dyn Error>> {
    let header = fs::read_to_string(header_path())?;
    assert!(header.contains(&format!("#define ST_VERSION \"{}\"\n", env!("CARGO_PKG_VERSION"))));
    assert!(header.contains(&format!("#define ST_VERSION_MINOR {}\n", env!("CARGO_PKG_VERSION_MINOR"))));
    assert!(header.contains(&format!("#define ST_ABI_VERSION {}\n", smallthinker::ST_ABI_VERSION)));
    Ok(())
}

/// A module that is missing in `SOURCES` would be missing in the header too, and no comparison would tell.
#[test]
fn every_export_is_in_the_header() -> Result<(), Box<dyn Error>> {
    let header = fs::read_to_string(header_path())?;
    let mut exports = BTreeSet::new();
    for entry in fs::read_dir(crate_dir().join("src"))? {
        exports.extend(exports_of(&entry?.path())?);
    }
    assert!(exports.len() > 20, "found only {exports:?}");
    for name in &exports {
        assert!(name.starts_with("st_"), "{name}");
        assert!(header.contains(&format!("{name}(")), "{name} is not in the header");
    }
    Ok(())
}

/// Names of the functions after `#[unsafe(no_mangle)]`.
fn exports_of(file: &Path) -> Result<Vec<String>, Box<dyn Error>> {
    let text = fs::read_to_string(file)?;
    let mut names = Vec::new();
    for part in text.split("#[unsafe(no_mangle)]").skip(1) {
        let signature = part.split_once("fn ").ok_or("no function after no_mangle")?.1;
        names.push(signature.split('(').next().unwrap_or_default().to_owned());
    }
    Ok(names)
}

//! Names of split files: `NAME-00001-of-00003.gguf`.

use std::path::{Path, PathBuf};

const EXTENSION: &str = ".gguf";
const DIGITS: usize = 5;

/// What a shard's file name says.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct ShardName {
    prefix: String,
    /// Number of this shard, from 1.
    pub(super) number: u32,
    /// Number of shards.
    pub(super) count: u32,
}

impl ShardName {
    /// Parses the file name of `path`; `None` if it does not have the form of a shard's name.
    pub(super) fn parse(path: &Path) -> Option<ShardName> {
        let stem = path.file_name()?.to_str()?.strip_suffix(EXTENSION)?;
        let (rest, count) = split_number(stem)?;
        let (rest, number) = split_number(rest.strip_suffix("-of")?)?;
        (1..=count).contains(&number).then(|| ShardName { prefix: rest.to_owned(), number, count })
    }

    /// Path of shard `number` (from 1) beside `path`.
    pub(super) fn sibling(&self, path: &Path, number: u32) -> PathBuf {
        path.with_file_name(format!("{}-{number:05}-of-{:05}{EXTENSION}", self.prefix, self.count))
    }
}

/// Splits `-00012` off the end of `text`.
fn split_number(text: &str) -> Option<(&str, u32)> {
    let (rest, digits) = text.rsplit_once('-')?;
    let valid = digits.len() == DIGITS && digits.bytes().all(|b| b.is_ascii_digit());
    if valid { Some((rest, digits.parse().ok()?)) } else { None }
}

//! Refuses, before parsing, what the engine's own limits do not cover: the work of a single instruction
//! and the folding of constants, which is cubic in the length of an expression.

use crate::error::{Error, Result};

/// Bytes of source; published templates have up to some tens of thousands.
const SOURCE: usize = 64 << 10;
/// Bytes of one `{{ ... }}` or `{% ... %}`, string literals not counted.
const TAG: usize = 2048;

/// Checks sizes, and that no expression multiplies: a product of a string or a sequence with a large
/// number is one instruction, whatever its size. (`*` has no use in published templates.)
pub(super) fn check_source(source: &str) -> Result<()> {
    let refuse = |found: String, allowed: &str| {
        Err(Error::Template { message: format!("found {found}, allowed: {allowed}") })
    };
    if source.len() > SOURCE {
        return refuse(format!("{} bytes of source", source.len()), &format!("at most {SOURCE}"));
    }
    let bytes = source.as_bytes();
    let line = |at: usize| 1 + bytes[..at].iter().filter(|b| **b == b'\n').count();
    let mut at = 0;
    while let Some(open) = next_tag(bytes, at) {
        if bytes[open + 1] == b'#' {
            at = find(bytes, open + 2, b"#}").map_or(bytes.len(), |end| end + 2);
            continue;
        }
        let close: &[u8] = if bytes[open + 1] == b'{' { b"}}" } else { b"%}" };
        at = open + 2;
        let mut code = 0;
        let mut braces = 0usize;
        while at < bytes.len() && (braces > 0 || !bytes[at..].starts_with(close)) {
            match bytes[at] {
                quote @ (b'"' | b'\'') => at = literal_end(bytes, at + 1, quote),
                b'*' => return refuse(format!("operator * on line {}", line(at)), "the other operators"),
                b'{' => braces += 1,
                b'}' => braces = braces.saturating_sub(1),
                _ => {}
            }
            code += 1;
            at += 1;
        }
        if code > TAG {
            let found = format!("an expression of {code} bytes on line {}", line(open));
            return refuse(found, &format!("at most {TAG} besides string literals"));
        }
        at += 2;
    }
    Ok(())
}

/// Where the next tag or comment begins.
fn next_tag(bytes: &[u8], from: usize) -> Option<usize> {
    let pairs = bytes.get(from..)?.windows(2);
    pairs.into_iter().position(|w| matches!(w, b"{{" | b"{%" | b"{#")).map(|i| from + i)
}

fn find(bytes: &[u8], from: usize, what: &[u8]) -> Option<usize> {
    bytes.get(from..)?.windows(what.len()).position(|w| w == what).map(|i| from + i)
}

/// Where the quote that ends a string literal stands, or the end of the source.
fn literal_end(bytes: &[u8], mut at: usize, quote: u8) -> usize {
    while at < bytes.len() && bytes[at] != quote {
        at += if bytes[at] == b'\\' { 2 } else { 1 };
    }
    at
}

#[cfg(test)]
mod tests {
    use super::check_source;

    #[test]
    fn multiplication_is_found_only_where_it_is_an_operator() {
        for fine in [
            "a * b",
            "{{ '*' }} * {# 2 * 3 #} {{ \"\\\"*\" }}",
            "{{ {'a': {'*': 1}} }} * {% if x %}*{% endif %}",
            "{{ 'it''s' }}*",
            "{{ open",
            "{{ 'open",
            "{{ 'open\\",
            "{",
            "{#",
            "",
        ] {
            assert!(check_source(fine).is_ok(), "{fine}");
        }
        for refused in
            ["{{ 2*3 }}", "{% set x = 'a' * 9 %}", "{{ 2**9 }}", "\n{{ {'a': 1}}}{{ a*b", "{#}#}{{ *"]
        {
            assert!(check_source(refused).unwrap_err().to_string().contains("operator *"), "{refused}");
        }
    }

    #[test]
    fn sizes() {
        assert!(check_source(&format!("{{{{ '{}' }}}}", "x".repeat(60_000))).is_ok());
        let long = check_source(&format!("\n{{{{ {} }}}}", "+1".repeat(2000))).unwrap_err();
        assert!(long.to_string().contains("line 2"), "{long}");
        assert!(check_source(&" ".repeat(1 << 20)).unwrap_err().to_string().contains("bytes of source"));
    }
}

//! Many strings in two allocations.

use std::fmt;
use std::sync::Arc;

/// A list of strings, stored one after the other. A vocabulary has hundreds of thousands of them: as a `String` each they
/// would take several times their bytes, in blocks so small that an allocator does not give them back to the system. Clones
/// share them.
///
/// ```
/// use smallthinker_core::gguf::Strings;
/// let strings: Strings = ["a", "", "bc"].into_iter().collect();
/// assert_eq!((strings.len(), strings.get(2), strings.get(3)), (3, Some("bc"), None));
/// assert_eq!(strings.iter().collect::<String>(), "abc");
/// ```
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Strings(Arc<Inner>);

#[derive(Clone, Default, PartialEq, Eq)]
struct Inner {
    text: String,
    /// Where each string ends in `text`.
    ends: Vec<usize>,
}

impl Strings {
    /// An empty list with room for `n` strings; their text makes room for itself.
    pub fn with_capacity(n: usize) -> Self {
        Strings(Arc::new(Inner { text: String::new(), ends: Vec::with_capacity(n) }))
    }

    /// Appends a string; a list that has clones is copied first.
    pub fn push(&mut self, string: &str) {
        let inner = Arc::make_mut(&mut self.0);
        inner.text.push_str(string);
        inner.ends.push(inner.text.len());
    }

    /// Number of strings.
    pub fn len(&self) -> usize {
        self.0.ends.len()
    }

    /// Whether there are no strings.
    pub fn is_empty(&self) -> bool {
        self.0.ends.is_empty()
    }

    /// String `index`, if there are that many.
    pub fn get(&self, index: usize) -> Option<&str> {
        let end = *self.0.ends.get(index)?;
        let start = if index == 0 { 0 } else { *self.0.ends.get(index - 1)? };
        self.0.text.get(start..end)
    }

    /// The strings in order.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = &str> + Clone {
        let mut start = 0;
        self.0.ends.iter().map(move |&end| &self.0.text[std::mem::replace(&mut start, end)..end])
    }

    /// Bytes of all strings together.
    pub fn text_bytes(&self) -> usize {
        self.0.text.len()
    }
}

impl<S: AsRef<str>> FromIterator<S> for Strings {
    fn from_iter<I: IntoIterator<Item = S>>(strings: I) -> Self {
        let mut list = Strings::default();
        strings.into_iter().for_each(|s| list.push(s.as_ref()));
        list
    }
}

impl fmt::Debug for Strings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.iter()).finish()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn holds_what_was_put_in(strings in prop::collection::vec(".{0,4}", 0..20)) {
            let list: Strings = strings.iter().collect();
            prop_assert!(list.iter().eq(strings.iter().map(String::as_str)));
            prop_assert_eq!(list.len(), strings.len());
            prop_assert_eq!(list.is_empty(), strings.is_empty());
            for i in 0..=strings.len() {
                prop_assert_eq!(list.get(i), strings.get(i).map(String::as_str));
            }
            prop_assert_eq!(list.text_bytes(), strings.iter().map(String::len).sum::<usize>());
            prop_assert_eq!(format!("{list:?}"), format!("{strings:?}"));
            let mut more = list.clone();
            more.push("x");
            prop_assert_eq!((list.len(), more.len()), (strings.len(), strings.len() + 1));
            prop_assert!(list == strings.iter().collect() && more != list);
        }
    }
}

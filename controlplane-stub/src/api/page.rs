//! Pages of lists: opaque tokens that are bound to the filters they were made for.

use ring::digest;
use serde_json::{Value, json};

use super::error::{ApiError, ApiResult};
use crate::hex;

/// Which page a caller asks for.
#[derive(Debug, Clone, Copy)]
pub(super) struct Paging<'a> {
    /// `maxResults` of the request.
    pub(super) max_results: Option<i64>,
    /// `nextToken` of the request.
    pub(super) next_token: Option<&'a str>,
    /// The page size when the request names none.
    pub(super) default: usize,
    /// The greatest page size.
    pub(super) greatest: usize,
}

impl<'a> Paging<'a> {
    /// ECS's usual sizes: 100, at most 100.
    pub(super) const fn usual(max_results: Option<i64>, next_token: Option<&'a str>) -> Self {
        Self { max_results, next_token, default: 100, greatest: 100 }
    }

    /// Takes the page out of `items`, which are sorted by `key` and have unique keys. `filters`
    /// is everything of the request that chose the items.
    ///
    /// # Errors
    /// `InvalidParameterException` for a size out of range, and for a token that was not made for
    /// these filters.
    pub(super) fn page<T>(
        self,
        filters: &str,
        items: Vec<T>,
        key: impl Fn(&T) -> String,
    ) -> ApiResult<(Vec<T>, Option<String>)> {
        let size = match self.max_results {
            None => self.default,
            Some(size) => usize::try_from(size)
                .ok()
                .filter(|size| (1..=self.greatest).contains(size))
                .ok_or_else(|| {
                    ApiError::invalid_parameter(format!(
                        "maxResults must be between 1 and {}.",
                        self.greatest
                    ))
                })?,
        };
        let digest = fingerprint(filters);
        let start = match self.next_token.filter(|token| !token.is_empty()) {
            None => 0,
            Some(token) => {
                let last = open(token, &digest).ok_or_else(|| {
                    ApiError::invalid_parameter("Invalid token: it was not given out for this request.")
                })?;
                // The token names the last item shown, which may be gone by now: go on behind the
                // place where it was.
                items
                    .iter()
                    .position(|item| key(item) == last)
                    .map_or_else(|| after(&items, &key, &last), |at| at + 1)
            }
        };
        let mut page: Vec<T> = items.into_iter().skip(start).collect();
        let more = page.len() > size;
        page.truncate(size);
        let next = page.last().filter(|_| more).map(|last| seal(&digest, &key(last)));
        Ok((page, next))
    }
}

/// The first item behind `last` in the direction in which the items are sorted.
fn after<T>(items: &[T], key: impl Fn(&T) -> String, last: &str) -> usize {
    let descending = items.first().zip(items.last()).is_some_and(|(first, end)| key(first) > key(end));
    let behind = |item: &T| if descending { key(item).as_str() < last } else { key(item).as_str() > last };
    items.iter().position(behind).unwrap_or(items.len())
}

fn fingerprint(filters: &str) -> String {
    hex::encode(&digest::digest(&digest::SHA256, filters.as_bytes()).as_ref()[..8])
}

fn seal(digest: &str, key: &str) -> String {
    hex::encode(format!("{digest}{key}").as_bytes())
}

fn open(token: &str, digest: &str) -> Option<String> {
    String::from_utf8(hex::decode(token)?).ok()?.strip_prefix(digest).map(ToOwned::to_owned)
}

/// A list's reply: the page under its member's name, and the token of the next one.
pub(super) fn reply(member: &str, page: Value, next: Option<String>) -> Value {
    let mut reply = json!({ member: page });
    if let (Some(next), Some(members)) = (next, reply.as_object_mut()) {
        members.insert("nextToken".to_owned(), Value::from(next));
    }
    reply
}

#[cfg(test)]
mod tests {
    use super::*;

    fn page(items: &[&str], token: Option<&str>, filters: &str) -> ApiResult<(Vec<String>, Option<String>)> {
        let items = items.iter().map(|&item| item.to_owned()).collect();
        Paging::usual(Some(2), token).page(filters, items, Clone::clone)
    }

    #[test]
    fn pages_follow_one_another_and_end() {
        let (first, token) = page(&["a", "b", "c"], None, "f").unwrap();
        assert_eq!(first, ["a", "b"]);
        let (second, end) = page(&["a", "b", "c"], token.as_deref(), "f").unwrap();
        assert_eq!((second, end), (vec!["c".to_owned()], None));
    }

    #[test]
    fn an_item_that_went_away_does_not_break_the_walk() {
        let (_, token) = page(&["a", "b", "c"], None, "f").unwrap();
        assert_eq!(page(&["a", "c"], token.as_deref(), "f").unwrap().0, ["c"]);
        let (_, token) = page(&["c", "b", "a"], None, "f").unwrap();
        assert_eq!(page(&["c", "a"], token.as_deref(), "f").unwrap().0, ["a"]);
    }

    #[test]
    fn a_token_of_other_filters_or_none_of_ours_is_refused() {
        let (_, token) = page(&["a", "b", "c"], None, "f").unwrap();
        for (token, filters) in [(token.unwrap().as_str(), "g"), ("zz", "f"), ("616", "f"), ("é", "f")] {
            assert_eq!(page(&["a"], Some(token), filters).unwrap_err().code, "InvalidParameterException");
        }
    }

    #[test]
    fn sizes_out_of_range_are_refused() {
        for size in [0, -1, 101] {
            let refused =
                Paging::usual(Some(size), None).page("f", vec!["a".to_owned()], Clone::clone).unwrap_err();
            assert_eq!(refused.message, "maxResults must be between 1 and 100.");
        }
    }
}

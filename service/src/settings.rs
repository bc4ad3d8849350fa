//! What is said about settings that cannot be read.

/// The message of a fault without the text that was found where another type belongs: it may be an address with a
/// password in it.
pub fn without_values(message: &str) -> String {
    let text = |begin: &str| Some((message.find(begin)? + begin.len(), message.rfind("\", expected ")?));
    match text("string \"").filter(|(begin, end)| begin <= end) {
        Some((begin, end)) => format!("{}…{}", &message[..begin], &message[end..]),
        None => message.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_text_in_the_wrong_place_is_not_quoted() {
        let message =
            "invalid type: string \"redis://:hush\", expected x@h:1\", expected struct RedisSettings";
        assert_eq!(without_values(message), "invalid type: string \"…\", expected struct RedisSettings");
        for message in ["unknown field `lisen`, expected one of `listen`", "string \"", ""] {
            assert_eq!(without_values(message), message);
        }
    }
}

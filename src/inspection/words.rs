//! Suggestions for words that nobody knows.

/// ` (did you mean 'x'?)`, or nothing if no known word is close.
pub fn did_you_mean<'a>(wrong: &str, known: impl Iterator<Item = &'a str>) -> String {
    let best = known.map(|word| (strsim::damerau_levenshtein(wrong, word), word)).min();
    match best {
        Some((distance, word)) if distance <= 1 + wrong.len() / 3 => format!(" (did you mean '{word}'?)"),
        _ => String::new(),
    }
}

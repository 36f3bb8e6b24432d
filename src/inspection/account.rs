//! Accounts: how much somebody may do to a station.

use std::fmt;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// What an account may do. Each level may do what those before it may.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Level {
    /// Looks, triggers, starts and stops.
    Operator,
    /// Changes recipes.
    Technician,
    /// Changes how parts are judged.
    Engineer,
    /// Gives and takes accounts.
    Admin,
}

impl Level {
    /// All of them, the least first.
    pub const ALL: [Self; 4] = [Self::Operator, Self::Technician, Self::Engineer, Self::Admin];

    /// The word on the wire.
    pub fn word(self) -> &'static str {
        match self {
            Self::Operator => "operator",
            Self::Technician => "technician",
            Self::Engineer => "engineer",
            Self::Admin => "admin",
        }
    }

    /// The level of a word.
    pub fn parse(word: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|level| level.word() == word)
    }
}

impl fmt::Display for Level {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.word())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_and_order_are_those_of_the_list() {
        assert!(Level::ALL.is_sorted() && Level::Operator < Level::Admin);
        for level in Level::ALL {
            assert_eq!(Level::parse(level.word()), Some(level));
            assert_eq!(serde_json::to_value(level).expect("JSON"), level.word());
        }
        assert_eq!(Level::parse("Admin"), None);
    }
}

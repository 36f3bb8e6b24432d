//! What a client asks of a station: the commands of OPC 40100-1, the same on every protocol.

use std::collections::BTreeMap;
use std::fmt;

use super::account::Level;
use super::recipe::RecipeId;
use super::trigger::{RefusalCode, Refused};
use super::words::did_you_mean;

/// Longest value of a field, bytes.
pub const LONGEST: usize = 256;

/// Which recipe is meant.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RecipeName {
    /// By its id.
    Id(RecipeId),
    /// By its number, as controllers have it.
    Number(u16),
}

impl fmt::Display for RecipeName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Id(id) => write!(f, "'{}'", id.0),
            Self::Number(number) => write!(f, "number {number}"),
        }
    }
}

/// A command, in words of OPC 40100-1.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Command {
    /// Open the devices: a halted station is initialized.
    SelectModeAutomatic,
    /// Judge by this recipe from the next part on.
    PrepareRecipe {
        /// The camera; left out, all cameras that know the recipe.
        camera: Option<String>,
        /// The recipe.
        recipe: RecipeName,
    },
    /// No recipe is prepared any more.
    UnprepareRecipe,
    /// Inspect the part that is there, or will be after the camera's delay.
    StartSingleJob {
        /// The camera; may be left out where only one waits for triggers.
        camera: Option<String>,
        /// Identity of the part, for the event.
        part_id: Option<String>,
    },
    /// Judge what cameras give that run free.
    StartContinuous,
    /// No more of that, once the frames that were taken are judged.
    Stop,
    /// What is being inspected ends as an overrun, at once.
    Abort,
    /// Stop working, at once.
    Halt,
    /// Forget a fault or a halt, and start over.
    Reset,
    /// Read the configuration again.
    Reload,
}

/// Words of the commands, with their numbers in registers and the fields that they take.
const WORDS: [(&str, u16, &[&str]); 10] = [
    ("SelectModeAutomatic", 1, &[]),
    ("PrepareRecipe", 2, &["camera", "recipe", "number"]),
    ("UnprepareRecipe", 3, &[]),
    ("StartSingleJob", 4, &["camera", "part_id"]),
    ("StartContinuous", 5, &[]),
    ("Stop", 6, &[]),
    ("Abort", 7, &[]),
    ("Halt", 8, &[]),
    ("Reset", 9, &[]),
    ("Reload", 10, &[]),
];

impl Command {
    /// The command of a word and its fields.
    ///
    /// # Errors
    /// The word or a field is unknown, a field is missing, or a value cannot be meant.
    pub fn parse(word: &str, fields: &BTreeMap<String, String>) -> Result<Self, Refused> {
        let unknown = |text: String| Err(Refused::new(RefusalCode::Unknown, text));
        let Some((_, _, known)) = WORDS.iter().find(|(known, ..)| *known == word) else {
            let hint = did_you_mean(word, Self::words().map(|(known, _)| known));
            let all: Vec<&str> = Self::words().map(|(known, _)| known).collect();
            return unknown(format!("no command '{}'{hint}; there are: {}", brief(word), all.join(", ")));
        };
        for (key, value) in fields {
            if !known.contains(&key.as_str()) {
                let hint = did_you_mean(key, known.iter().copied());
                let takes = if known.is_empty() { "no fields".into() } else { known.join(", ") };
                return unknown(format!("{word} has no '{}'{hint}; it takes {takes}", brief(key)));
            }
            if value.len() > LONGEST || value.chars().any(char::is_control) {
                return unknown(format!("'{key}' must be at most {LONGEST} bytes, without control characters"));
            }
        }
        let field = |key: &str| fields.get(key).cloned();
        let camera = field("camera");
        Ok(match word {
            "SelectModeAutomatic" => Self::SelectModeAutomatic,
            "PrepareRecipe" => {
                let recipe = match (field("recipe"), field("number")) {
                    (Some(id), None) => RecipeName::Id(RecipeId(id)),
                    (None, Some(number)) => match number.parse() {
                        Ok(number @ 1..) => RecipeName::Number(number),
                        _ => return unknown(format!("number '{number}' is none of 1 to 65535")),
                    },
                    (Some(_), Some(_)) => return unknown("PrepareRecipe takes recipe or number, not both".into()),
                    (None, None) => return unknown("PrepareRecipe needs recipe=ID or number=N".into()),
                };
                Self::PrepareRecipe { camera, recipe }
            }
            "UnprepareRecipe" => Self::UnprepareRecipe,
            "StartSingleJob" => Self::StartSingleJob { camera, part_id: field("part_id") },
            "StartContinuous" => Self::StartContinuous,
            "Stop" => Self::Stop,
            "Abort" => Self::Abort,
            "Halt" => Self::Halt,
            "Reset" => Self::Reset,
            _ => Self::Reload,
        })
    }

    /// Words and numbers of all commands.
    pub fn words() -> impl Iterator<Item = (&'static str, u16)> {
        WORDS.iter().map(|(word, number, _)| (*word, *number))
    }

    /// The word.
    pub fn word(&self) -> &'static str {
        let position = match self {
            Self::SelectModeAutomatic => 0,
            Self::PrepareRecipe { .. } => 1,
            Self::UnprepareRecipe => 2,
            Self::StartSingleJob { .. } => 3,
            Self::StartContinuous => 4,
            Self::Stop => 5,
            Self::Abort => 6,
            Self::Halt => 7,
            Self::Reset => 8,
            Self::Reload => 9,
        };
        WORDS[position].0
    }

    /// Who may command it.
    pub fn level(&self) -> Level {
        Self::level_of(self.word())
    }

    /// Who may command what a word says. Whoever stands at the line may trigger, start and stop; what changes how parts are judged,
    /// or takes a station that was set up by hand into automatic mode, is for those who set it up.
    pub fn level_of(word: &str) -> Level {
        match word {
            "StartSingleJob" | "StartContinuous" | "Stop" | "Abort" | "Halt" | "Reset" => Level::Operator,
            "Reload" => Level::Engineer,
            _ => Level::Technician,
        }
    }
}

/// Who gives a command, and by which way.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Source {
    /// The account; where a way has none, its name again.
    pub who: String,
    /// The way and where from, as `tcp 192.168.0.7:51000`; its first word stands in events.
    pub from: String,
    /// What may be commanded.
    pub level: Level,
}

impl Source {
    /// Somebody without an account, who comes by this way from there.
    pub fn unnamed(way: &str, peer: impl fmt::Display, level: Level) -> Self {
        Self { who: way.to_owned(), from: format!("{way} {peer}"), level }
    }

    /// The way: `http`, `tcp`, `mqtt`, `modbus`.
    pub fn way(&self) -> &str {
        self.from.split(' ').next().unwrap_or_default()
    }
}

/// A command, and who gives it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Order {
    /// The command.
    pub command: Command,
    /// Who gives it.
    pub source: Source,
}

impl Order {
    /// The order of a word and its fields.
    ///
    /// # Errors
    /// As of [`Command::parse`].
    pub fn parse(word: &str, fields: &BTreeMap<String, String>, source: Source) -> Result<Self, Refused> {
        Ok(Self { command: Command::parse(word, fields)?, source })
    }

    /// Whether whoever gives it may.
    ///
    /// # Errors
    /// The level is too low.
    pub fn permitted(&self) -> Result<(), Refused> {
        let (needed, has) = (self.command.level(), self.source.level);
        if has >= needed {
            return Ok(());
        }
        let word = self.command.word();
        let text = format!("{word} is for a {needed}, and this is an {has}; raise `level`, or ask one who may");
        Err(Refused::new(RefusalCode::Forbidden, text))
    }
}

/// The beginning of what somebody sent.
fn brief(text: &str) -> String {
    text.chars().take(40).filter(|letter| !letter.is_control()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fields(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
        pairs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
    }

    #[test]
    fn every_word_is_its_command() {
        for (word, number) in Command::words() {
            let needed = if word == "PrepareRecipe" { fields(&[("number", "7")]) } else { fields(&[]) };
            assert_eq!(Command::parse(word, &needed).map(|command| command.word()), Ok(word));
            assert_eq!(WORDS[usize::from(number) - 1].0, word, "numbers are those of the order");
        }
        let camera = Some("top".to_owned());
        let job = Command::StartSingleJob { camera: camera.clone(), part_id: Some("A 17".into()) };
        assert_eq!(Command::parse("StartSingleJob", &fields(&[("camera", "top"), ("part_id", "A 17")])), Ok(job));
        let by_id = Command::PrepareRecipe { camera, recipe: RecipeName::Id(RecipeId("bottle".into())) };
        assert_eq!(Command::parse("PrepareRecipe", &fields(&[("camera", "top"), ("recipe", "bottle")])), Ok(by_id));
    }

    #[test]
    fn what_cannot_be_meant_is_refused_with_words() {
        let long = "x".repeat(LONGEST + 1);
        type Case<'a> = (&'a str, &'a [(&'a str, &'a str)], &'a str);
        let cases: [Case; 9] = [
            ("Holt", &[], "did you mean 'Halt'"),
            ("start the line, please, and quickly, would you", &[], "there are: SelectModeAutomatic"),
            ("Halt", &[("camera", "top")], "it takes no fields"),
            ("StartSingleJob", &[("part-id", "7")], "did you mean 'part_id'"),
            ("StartSingleJob", &[("part_id", "a\nb")], "control characters"),
            ("StartSingleJob", &[("part_id", &long)], "at most 256 bytes"),
            ("PrepareRecipe", &[], "needs recipe=ID or number=N"),
            ("PrepareRecipe", &[("recipe", "a"), ("number", "1")], "not both"),
            ("PrepareRecipe", &[("number", "0")], "1 to 65535"),
        ];
        for (word, pairs, text) in cases {
            let refused = Command::parse(word, &fields(pairs)).expect_err(word);
            assert!(refused.code == RefusalCode::Unknown && refused.text.contains(text), "{word}: {refused}");
        }
    }

    #[test]
    fn a_level_that_is_too_low_is_refused() {
        let order = |command, level| Order { command, source: Source::unnamed("tcp", "[::1]:5", level) };
        let refused = order(Command::UnprepareRecipe, Level::Operator).permitted().expect_err("refused");
        assert_eq!(refused.code, RefusalCode::Forbidden);
        assert_eq!(order(Command::UnprepareRecipe, Level::Technician).permitted(), Ok(()));
        let halt = order(Command::Halt, Level::Operator);
        assert_eq!((halt.permitted(), halt.source.way(), halt.source.from.as_str()), (Ok(()), "tcp", "tcp [::1]:5"));
    }
}

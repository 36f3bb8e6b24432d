//! JSON schemas of the configuration files, for editors: made of the very types that the files are read into.

use schemars::generate::SchemaSettings;
use schemars::{JsonSchema, Schema};

use super::file::{RecipeFile, StationFile};

/// Of `dsad.toml`.
pub fn of_station() -> Schema {
    of::<StationFile>()
}

/// Of a recipe.
pub fn of_recipe() -> Schema {
    of::<RecipeFile>()
}

/// Draft 7 is what TOML editors know best.
fn of<T: JsonSchema>() -> Schema {
    SchemaSettings::draft07().into_generator().into_root_schema_for::<T>()
}

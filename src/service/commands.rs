//! Commands over HTTP.

use axum::http::StatusCode;
use axum::response::Response;
use serde::Deserialize;
use serde_json::json;

use super::routes::{Asked, Shared, json_answer, refusal};
use crate::inspection::trigger::{Command, Done, RefusalCode, Refused};

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct TriggerBody {
    camera: Option<String>,
    part_id: Option<String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RecipeBody {
    camera: Option<String>,
    recipe: String,
}

pub(super) fn trigger(shared: &Shared, asked: &Asked) -> Result<Response, Response> {
    let TriggerBody { camera, part_id } = asked.json()?;
    Ok(obey(shared, Command::Trigger { camera, part_id, source: "http" }))
}

pub(super) fn recipe(shared: &Shared, asked: &Asked) -> Result<Response, Response> {
    let RecipeBody { camera, recipe } = asked.json()?;
    Ok(obey(shared, Command::PrepareRecipe { camera, recipe }))
}

fn obey(shared: &Shared, command: Command) -> Response {
    match (shared.act)(command) {
        Ok(Done::Accepted { camera, frame_id }) => {
            json_answer(StatusCode::ACCEPTED, &json!({"camera": camera, "frame_id": frame_id}))
        }
        Ok(Done::Prepared { cameras }) => json_answer(StatusCode::OK, &json!({"cameras": cameras})),
        Err(Refused { code, text }) => {
            let status = match code {
                RefusalCode::NotReady => StatusCode::SERVICE_UNAVAILABLE,
                RefusalCode::Bounced | RefusalCode::NotTriggered => StatusCode::CONFLICT,
                RefusalCode::Unknown => StatusCode::NOT_FOUND,
            };
            refusal(status, code.word(), &text)
        }
    }
}

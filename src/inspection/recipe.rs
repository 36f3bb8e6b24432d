//! What an operator chooses for one product.

use std::collections::BTreeMap;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::calibration::CALIBRATED_POINT;
use super::detect::{ClassId, StepChoice};
use super::line::LineRules;
use super::polygon::Rois;
use super::roi::Roi;
use super::tiles::TileGrid;

/// Name of a recipe.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct RecipeId(pub String);

/// One product, validated. Serialised, it has the keys of its file, those that were left out with what they mean.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Recipe {
    /// Name, carried to the event.
    pub id: RecipeId,
    /// Number, for controllers that have no names; the same at all cameras of a station.
    pub number: Option<u16>,
    /// The inspected part of the frame.
    pub roi: Roi,
    /// What counts of it.
    pub rois: Rois,
    /// The product kind inside a multi-class bundle; `None` is the null class.
    pub class: Option<ClassId>,
    /// Denoising steps; the bundle must list and calibrate them.
    pub steps: StepChoice,
    /// How the part is cut; `None` is as the bundle says.
    pub tiles: Option<TileGrid>,
    /// 0 to 1, 0.5 is the calibrated point; higher rejects more.
    pub sensitivity: f64,
    /// Milliseconds from the trigger, or from the capture where there is none, until the verdict must be out; `None` is never.
    pub deadline_ms: Option<u64>,
    /// What the line does with the verdicts.
    #[serde(flatten)]
    pub line: LineRules,
    /// Controls that the camera is given for this product, by name.
    pub controls: BTreeMap<String, i64>,
}

impl Recipe {
    /// A recipe of the whole frame, at the calibrated point, without a deadline.
    pub fn whole_frame(id: &str, class: Option<ClassId>, steps: StepChoice) -> Self {
        Self {
            id: RecipeId(id.into()),
            number: None,
            roi: Roi::FULL,
            rois: Rois::default(),
            class,
            steps,
            tiles: None,
            sensitivity: CALIBRATED_POINT,
            deadline_ms: None,
            line: LineRules::default(),
            controls: BTreeMap::new(),
        }
    }

    /// What names the recipe as it is meant: twelve digits in hex, the same wherever the same is meant.
    pub fn hash(&self) -> Arc<str> {
        // Maps with texts as keys, numbers and texts are always JSON.
        let meant = serde_json::to_vec(self).unwrap_or_default();
        blake3::hash(&meant).to_hex()[..12].into()
    }
}

#[cfg(test)]
mod tests {
    use super::super::detect::Steps;
    use super::super::line::OnFault;
    use super::*;

    #[test]
    fn what_is_meant_alike_has_one_hash() {
        let recipe = || Recipe::whole_frame("a", None, StepChoice::Fixed(Steps(2)));
        assert_eq!((recipe().hash(), recipe().hash().len()), (recipe().hash(), 12));
        let line = LineRules { on_fault: OnFault::Hold, ..LineRules::default() };
        let controls = BTreeMap::from([("gain".to_owned(), 1)]);
        let others = [
            Recipe { sensitivity: 0.6, ..recipe() },
            Recipe { deadline_ms: Some(1), ..recipe() },
            Recipe { line, ..recipe() },
            Recipe { controls, ..recipe() },
            Recipe { steps: StepChoice::Auto, ..recipe() },
        ];
        assert!(others.iter().all(|other| other.hash() != recipe().hash()));
    }
}

//! From a folder of good pictures to a bundle (feature `train`).
//!
//! | file | what |
//! |---|---|
//! | `config`, `grid` | how a profile is trained |
//! | `dataset`, `pictures`, `appearance`, `outliers` | what it is trained on |
//! | `augment`, `batches` | how that is varied and spoilt |
//! | `cost`, `setup`, `usage` | what is chosen and what it costs, told before it starts |
//! | `objective`, `learner`, `stage`, `stages`, `checkpoint` | the three stages and their step loop |
//! | `backbone` | the frozen feature extractor's weights |
//! | `pretrain`, `base` | networks that know pictures in general, to start from |
//! | `prototypes`, `select`, `calibrate`, `export`, `report` | from trained networks to a bundle |
//! | `fit` | all of it in one go |
//! | `judge`, `evaluate`, `bootstrap`, `gallery` | metrics on a test split, and pictures |
//! | `bench`, `start` | times of starts, parts, frames and training steps |
//! | `sweep` | experiments: variants on several sets, one table |
//! | `import` | public checkpoints in and out |
//! | `paper` | the paper's own training |
//! | `commands` | the verbs |

pub mod appearance;
pub mod augment;
pub mod backbone;
pub mod base;
pub mod batches;
pub mod bench;
pub mod bootstrap;
pub mod calibrate;
pub mod checkpoint;
pub mod commands;
pub mod config;
pub mod cost;
pub mod dataset;
pub mod evaluate;
pub mod export;
pub mod fit;
pub mod gallery;
pub mod grid;
pub mod import;
pub mod judge;
pub mod learner;
pub mod metric;
pub mod objective;
pub mod outliers;
pub mod paper;
pub mod pictures;
pub mod pretrain;
pub mod prototypes;
pub mod report;
pub mod select;
pub mod setup;
pub mod stage;
pub mod stages;
pub mod start;
pub mod sweep;
pub mod usage;

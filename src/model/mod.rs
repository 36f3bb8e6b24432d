//! Networks and diffusion mathematics.
//!
//! burn only: no files, no threads, no `dsad` types, no `cfg(feature)`.
//!
//! Shapes: `b` batch, `c` channels, `h` and `w` rows and columns of the model grid. A latent is `[b, c, h/8, w/8]`,
//! its `c` comes from the configuration, and it is already scaled by the autoencoder's `latent_scale`.
//!
//! | file | what |
//! |---|---|
//! | `profile` | `ModelConfig` and the sizes `sd15`, `edge` and `edge-small` |
//! | `blocks` | residual, edge and transformer blocks, attention, resampling, timestep embedding |
//! | `autoencoder` | KL autoencoder with a factor of 8 |
//! | `unet`, `text` | the denoiser; the text encoder that gives its constant context |
//! | `sketch`, `guidance` | edges of the picture; the semantic and sketch guided network of the edge profiles |
//! | `control`, `fusion` | the guided network at the paper's size, DSAD's or DiAD's; parts that both share |
//! | `features` | frozen backbone whose stages score and guide |
//! | `schedule`, `sampler` | noise schedules on the host; reduced-step DDIM and deviation correction |
//! | `score`, `prototypes` | anomaly components; typical patches of good parts |
//! | `repair`, `refine` | features of the part without its defect; the head that judges differences |
//! | `network` | all of the above as one module: a picture in, a reconstruction and maps out |
//! | `lighten` | the same network with less in it |
//! | `loss` | what training minimises |
//! | `cost` | parameters and operations of a configuration |

pub mod autoencoder;
pub mod blocks;
pub mod control;
pub mod features;
mod fusion;
pub mod guidance;
pub mod lighten;
pub mod loss;
pub mod network;
pub mod profile;
pub mod prototypes;
pub mod refine;
pub mod repair;
pub mod sampler;
pub mod schedule;
pub mod score;
pub mod sketch;
pub mod text;
pub mod unet;

//! The paper's networks against `diffusers`: `UNet2DConditionModel`, and `ControlNetModel` with what DiAD and DSAD add.

use burn::tensor::Tensor;
use dsad::model::blocks::stage::BlockKind;
use dsad::model::blocks::transformer::ContextConfig;
use dsad::model::control::{ControlConfig, ControlForm, ControlNetwork, SketchBranch};
use dsad::model::guidance::SketchOperator;
use dsad::model::unet::{Conditions, Denoiser, DenoiserConfig, Guidance};

use super::golden_model::{Fixture, stages, style};

/// Channels of the stages that the fixture guides with.
const STAGES: [usize; 3] = [6, 10, 12];
const HINT: [usize; 7] = [4, 4, 6, 6, 8, 8, 12];

fn config() -> DenoiserConfig {
    DenoiserConfig {
        latent_channels: 4,
        channels: vec![8, 16, 16],
        blocks: 2,
        attention: vec![true, true, false],
        heads: 4,
        context: Some(ContextConfig { tokens: 5, width: 12, stored: false }),
        style: style(BlockKind::Residual, 1e-5),
    }
}

fn open() -> Fixture {
    Fixture::open("stable_diffusion")
}

fn unet(fixture: &Fixture) -> Denoiser {
    fixture.load(config().init(&fixture.device), "unet")
}

fn timesteps(fixture: &Fixture) -> Vec<f64> {
    fixture.values("timesteps").iter().map(|&t| f64::from(t)).collect()
}

fn diad(fixture: &Fixture, all_skips: bool) -> ControlNetwork {
    let network = ControlConfig { hint: HINT, form: ControlForm::Diad { all_skips, zeros: None } };
    let name = |name: &str| Some(name.strip_prefix("control.").or_else(|| name.strip_prefix("sff."))?.to_owned());
    fixture.load_named(network.init(&config(), STAGES, &fixture.device), name)
}

fn dsad(fixture: &Fixture) -> ControlNetwork {
    let form = ControlForm::Dsad {
        sketch: Some(SketchBranch { operator: SketchOperator::Canny, channels: [3, 4, 5, 6] }),
        semantic: Some(4),
        multi_scale: Some(6),
    };
    let network = ControlConfig { hint: HINT, form }.init(&config(), STAGES, &fixture.device);
    // The trunk and the zero convolutions of the coarsest skips are shared with DiAD's; the rest is its own.
    fixture.load_named(network, |name| {
        if let Some(own) = name.strip_prefix("dsad.") {
            let part = own.split('.').next().unwrap();
            return ["hint_out", "fusion", "multi_scale"].contains(&part).then(|| own.to_owned());
        }
        let shared = name.strip_prefix("control.")?;
        match shared.strip_prefix("zeros.") {
            Some(zero) => {
                let (index, parameter) = zero.split_once('.').unwrap();
                let index = index.parse::<usize>().unwrap().checked_sub(6)?;
                Some(format!("zeros.{index}.{parameter}"))
            }
            None => (!shared.starts_with("hint_out")).then(|| shared.to_owned()),
        }
    })
}

fn check(fixture: &Fixture, guidance: &Guidance, name: &str, out: &str) {
    let last = guidance.skips.len() - 3;
    fixture.assert_close(guidance.middle.clone(), &format!("{name}.middle"));
    for (k, skip) in guidance.skips[last..].iter().enumerate() {
        fixture.assert_close(skip.clone(), &format!("{name}.skips.{k}"));
    }
    let context = fixture.tensor("context");
    let conditions = Conditions { context: Some(&context), guidance: Some(guidance), ..Conditions::default() };
    fixture.assert_close(unet(fixture).forward(fixture.tensor("latent"), &timesteps(fixture), &conditions), out);
}

#[test]
fn denoiser_with_a_context_matches_unet_2d_condition() {
    let fixture = open();
    let context: Tensor<2> = fixture.tensor("context");
    let latent = || fixture.tensor::<4>("latent");
    let conditions = Conditions { context: Some(&context), ..Conditions::default() };
    fixture.assert_close(unet(&fixture).forward(latent(), &timesteps(&fixture), &conditions), "plain");
    // What a bundle holds: keys and values instead of the layers that make them.
    let stored = unet(&fixture).store_context(&context);
    fixture.assert_close(stored.forward(latent(), &timesteps(&fixture), &Conditions::default()), "plain");
}

#[test]
fn diads_control_matches_control_net_with_its_fusion() {
    let fixture = open();
    let context: Tensor<2> = fixture.tensor("context");
    let (image, latent) = (fixture.tensor::<4>("image"), fixture.tensor::<4>("latent"));
    for (all_skips, out) in [(false, "diad.out"), (true, "diad.all")] {
        let network = diad(&fixture, all_skips);
        let hint = network.hint(image.clone(), None, &stages(&fixture, "seen"));
        let guidance = network.forward(latent.clone(), &timesteps(&fixture), Some(&context), hint);
        assert_eq!(guidance.skips.len(), if all_skips { 9 } else { 3 });
        check(&fixture, &guidance, "diad", out);
    }
}

#[test]
fn dsads_control_matches_torch() {
    let fixture = open();
    let context: Tensor<2> = fixture.tensor("context");
    let network = dsad(&fixture);
    let hint = network.hint(fixture.tensor("image"), Some(fixture.tensor("sketch")), &stages(&fixture, "seen"));
    fixture.assert_close(hint.clone(), "dsad.hint");
    let guidance = network.forward(fixture.tensor("latent"), &timesteps(&fixture), Some(&context), hint.clone());
    check(&fixture, &guidance, "dsad", "dsad.out");
    let stored = network.store_context(&context);
    let guidance = stored.forward(fixture.tensor("latent"), &timesteps(&fixture), None, hint);
    check(&fixture, &guidance, "dsad", "dsad.out");
}

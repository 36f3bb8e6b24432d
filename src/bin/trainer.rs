//! `trainer`: makes bundles.

use std::process::ExitCode;

use clap::{Parser, Subcommand};
use dsad::trainer::commands::{
    backbone, baseline, bench, build_model, calibrate, describe, export, finetune_autoencoder, fit, keygen, pretrain,
    sign, sweep, synth, test, train,
};

/// Makes bundles for dsad from pictures of good parts
#[derive(Parser)]
#[command(version)]
struct Arguments {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Subcommand)]
enum Verb {
    /// Pictures of a procedural product line, in MVTec layout
    Synth(synth::SynthArgs),
    /// Networks for `fit` to start from, from procedural pictures only
    Pretrain(pretrain::PretrainArgs),
    /// From a folder of good pictures to a calibrated bundle
    Fit(fit::FitArgs),
    /// The bundle again with other thresholds, for a stated false-reject rate
    Calibrate(calibrate::CalibrateArgs),
    /// Metrics of a bundle or a model on a data set, and pictures
    Test(test::TestArgs),
    /// Metrics of a PatchCore-style yardstick on a data set
    Baseline(baseline::BaselineArgs),
    /// Variants of the training on several sets, and one table
    Sweep(sweep::SweepArgs),
    /// The paper's size: the autoencoder learns the pictures of a data set
    FinetuneAutoencoder(finetune_autoencoder::FinetuneAutoencoderArgs),
    /// The paper's size: a model from public checkpoints
    BuildModel(build_model::BuildModelArgs),
    /// The paper's size: the guided denoiser learns to redraw good parts
    Train(train::TrainArgs),
    /// The paper's size: a trained model becomes a bundle
    Export(export::ExportArgs),
    /// Parameters, operations and bytes of a profile, part by part
    Describe(describe::DescribeArgs),
    /// How long parts, frames and training steps take on this machine
    Bench(bench::BenchArgs),
    /// The frozen feature extractor
    Backbone(backbone::BackboneArgs),
    /// Make a key pair for signing bundles
    Keygen(keygen::KeygenArgs),
    /// Sign a bundle
    Sign(sign::SignArgs),
}

fn main() -> ExitCode {
    env_logger::Builder::from_env(env_logger::Env::default().default_filter_or("warn,dsad=info")).init();
    let result = match Arguments::parse().verb {
        Verb::Synth(args) => synth::run(&args),
        Verb::Pretrain(args) => pretrain::run(&args),
        Verb::Fit(args) => fit::run(&args),
        Verb::Calibrate(args) => calibrate::run(&args),
        Verb::Test(args) => test::run(&args),
        Verb::Baseline(args) => baseline::run(&args),
        Verb::Sweep(args) => sweep::run(&args),
        Verb::FinetuneAutoencoder(args) => finetune_autoencoder::run(&args),
        Verb::BuildModel(args) => build_model::run(&args),
        Verb::Train(args) => train::run(&args),
        Verb::Export(args) => export::run(&args),
        Verb::Describe(args) => describe::run(&args),
        Verb::Bench(args) => bench::run(&args),
        Verb::Backbone(args) => backbone::run(&args),
        Verb::Keygen(args) => keygen::run(&args),
        Verb::Sign(args) => sign::run(&args),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("trainer: {error:#}");
            ExitCode::FAILURE
        }
    }
}

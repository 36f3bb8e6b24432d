#!/usr/bin/env python3
"""The same work as benches/paper.rs in PyTorch: diffusers' U-Net, ControlNet and autoencoder, torchvision's ResNet50, compiled
and captured in CUDA graphs (`mode="reduce-overhead"`); the training step is neither (compiling it takes minutes). The hint is
computed once per frame, as there. What differs: a plain ControlNet stands for DSAD's guided network (1 % of a call), f32 is
TF32 here. One JSON object a line. Run by benches/paper.sh.

    pip install torch torchvision diffusers
    python benches/paper.py [--half] [--train [--batch 12]]
"""

import argparse
import json
import time

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL, ControlNetModel, UNet2DConditionModel
from torchvision.models import resnet50

parser = argparse.ArgumentParser()
parser.add_argument("--half", action="store_true")
parser.add_argument("--train", action="store_true")
parser.add_argument("--batch", type=int, default=12)
args = parser.parse_args()
torch.manual_seed(0)
# TF32, as PyTorch's own advice for speed is: without it f32 is several times slower.
torch.set_float32_matmul_precision("high")
device, dtype = "cuda", torch.float16 if args.half else torch.float32

SHAPE = dict(
    in_channels=4,
    block_out_channels=(320, 640, 1280, 1280),
    down_block_types=["CrossAttnDownBlock2D"] * 3 + ["DownBlock2D"],
    layers_per_block=2,
    attention_head_dim=8,
    cross_attention_dim=768,
)
unet = UNet2DConditionModel(out_channels=4, up_block_types=["UpBlock2D"] + ["CrossAttnUpBlock2D"] * 3, **SHAPE)
control = ControlNetModel(**SHAPE)


def say(what, ms, runs, warm_up):
    print(json.dumps({"what": what, "ms": ms, "runs": runs, "warm_up_s": warm_up}), flush=True)


def timed(what, runs, work):
    started = time.perf_counter()
    for _ in range(4):
        work()
        torch.cuda.synchronize()
    warm_up = time.perf_counter() - started
    started = time.perf_counter()
    for _ in range(runs):
        work()
    torch.cuda.synchronize()
    say(what, (time.perf_counter() - started) * 1e3 / runs, runs, warm_up)


def call(x, t, context, image):
    """Control reaches the coarsest three skips and the middle, as in the paper's released code."""
    down, middle = control(x, t, context, image, return_dict=False)
    residuals = [torch.zeros_like(d) for d in down[:9]] + [F.silu(d) for d in down[9:]]
    return unet(x, t, context, down_block_additional_residuals=residuals, mid_block_additional_residual=middle).sample


if args.train:
    unet.to(device).train().requires_grad_(False)
    for part in (unet.up_blocks, unet.conv_norm_out, unet.conv_out):
        part.requires_grad_(True)
    control.to(device).train()
    unet.enable_gradient_checkpointing()
    control.enable_gradient_checkpointing()
    learning = [p for p in [*unet.parameters(), *control.parameters()] if p.requires_grad]
    optimizer = torch.optim.AdamW(learning, lr=1e-5, fused=True)
    n = args.batch
    x, noise, image = torch.randn(n, 4, 32, 32, device=device), torch.randn(n, 4, 32, 32, device=device), torch.randn(
        n, 3, 256, 256, device=device
    )
    context, t = torch.randn(n, 77, 768, device=device), torch.arange(n, device=device) * 83 % 1000

    def step():
        loss = F.mse_loss(call(x, t, context, image), noise)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()

    timed(f"training step of {n}", 5, step)
    say("peak memory of training, GB", torch.cuda.max_memory_allocated() / 1e9, 1, 0)
else:
    torch.set_grad_enabled(False)
    autoencoder = AutoencoderKL(
        down_block_types=["DownEncoderBlock2D"] * 4,
        up_block_types=["UpDecoderBlock2D"] * 4,
        block_out_channels=(128, 256, 512, 512),
        layers_per_block=2,
        latent_channels=4,
    )
    backbone = resnet50()
    for module in (unet, control, autoencoder, backbone):
        module.to(device, dtype).eval()
    layers = torch.nn.Sequential(backbone.conv1, backbone.bn1, backbone.relu, backbone.maxpool)

    def features(x):
        x, out = layers(x), []
        for layer in (backbone.layer1, backbone.layer2, backbone.layer3):
            x = layer(x)
            out.append(x)
        return out

    def graph(function):
        compiled = torch.compile(function, mode="reduce-overhead")

        def run(*inputs):
            # The next replay overwrites what this one gave.
            torch.compiler.cudagraph_mark_step_begin()
            return torch.utils._pytree.tree_map(torch.clone, compiled(*inputs))

        return run

    hint_of = graph(control.controlnet_cond_embedding)
    # From here on the control network gets the hint itself.
    control.controlnet_cond_embedding = torch.nn.Identity()
    call = graph(call)
    encode = graph(lambda x: autoencoder.encode(x).latent_dist.mean * 0.18215)
    decode = graph(lambda z: autoencoder.decode(z / 0.18215).sample)
    features = graph(features)

    @graph
    def score(a, b):
        maps = [1 - F.cosine_similarity(x, y, dim=1)[:, None] for x, y in zip(a, b)]
        return sum(F.interpolate(m, (256, 256), mode="bilinear", align_corners=True) for m in maps)

    image = torch.randn(1, 3, 256, 256, device=device, dtype=dtype)
    x = torch.randn(1, 4, 32, 32, device=device, dtype=dtype)
    context = torch.randn(1, 77, 768, device=device, dtype=dtype)
    times = {t: torch.tensor([t], device=device) for t in range(1000)}
    hint = hint_of(image)
    timed("guided call", 20, lambda: call(x, times[749], context, hint))

    def frame(steps):
        host = image.cpu()

        def work():
            seen = host.to(device)
            z, hint = encode(seen), hint_of(seen)
            for k in range(steps):
                eps = call(z, times[999 - k * (1000 // steps)], context, hint)
                z = 1.001 * z - 0.001 * eps
            shown = decode(z)
            score(features(seen), features(shown)).float().cpu(), shown.float().cpu()

        return work

    for steps in (10, 4, 2, 1):
        timed(f"frame at {steps} steps", 10, frame(steps))
    say("peak memory of frames, GB", torch.cuda.max_memory_allocated() / 1e9, 1, 0)

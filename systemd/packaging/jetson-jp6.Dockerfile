# Build image for JetPack 6: its glibc 2.35 is that of the device, so the binary runs there and on JetPack 7.
FROM ubuntu:22.04
RUN apt-get update && apt-get install --yes --no-install-recommends \
        ca-certificates clang cmake g++ g++-aarch64-linux-gnu libc6-dev-arm64-cross linux-libc-dev-arm64-cross \
        libclang-dev lld make pkg-config python3 python3-pip \
    && rm -rf /var/lib/apt/lists/*
# The static LLVM for the device, which burn-cuda links (docs/building.md).
ENV XDG_DATA_HOME=/opt/data
RUN python3 -m pip download --no-deps --only-binary=:all: --platform manylinux_2_28_aarch64 -d /tmp/wheels \
        mlc-llvm-static==23.1.1.post0 mlc-llvm-static-extra-targets==23.1.1.post0 \
    && for wheel in /tmp/wheels/*.whl; do python3 -m zipfile -e "$wheel" /tmp/tree; done \
    && llvm="$XDG_DATA_HOME/tracel/tracel-llvm-23.1.0-4" && mkdir -p "$llvm" \
    && cp -r /tmp/tree/mlc_llvm_static/static/. "$llvm"/ && chmod +x "$llvm"/bin/* \
    && touch "$llvm/.tracel-llvm-installed" && rm -rf /tmp/wheels /tmp/tree
# lld, because the archives of LLVM need a linker that does not care for their order.
ENV CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_LINKER=aarch64-linux-gnu-gcc \
    CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_RUSTFLAGS="-C link-arg=-fuse-ld=lld" \
    CC_aarch64_unknown_linux_gnu=aarch64-linux-gnu-gcc \
    CXX_aarch64_unknown_linux_gnu=aarch64-linux-gnu-g++ \
    AR_aarch64_unknown_linux_gnu=aarch64-linux-gnu-ar \
    BINDGEN_EXTRA_CLANG_ARGS_aarch64_unknown_linux_gnu=-I/usr/aarch64-linux-gnu/include

# Build image for JetPack 6: its glibc 2.35 is that of the device, so the binary runs there and on JetPack 7.
FROM ubuntu:22.04
RUN apt-get update && apt-get install --yes --no-install-recommends \
        ca-certificates clang cmake g++ g++-aarch64-linux-gnu libc6-dev-arm64-cross linux-libc-dev-arm64-cross \
        libclang-dev lld make pkg-config python3 \
    && rm -rf /var/lib/apt/lists/*
ENV CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_LINKER=aarch64-linux-gnu-gcc \
    CC_aarch64_unknown_linux_gnu=aarch64-linux-gnu-gcc \
    CXX_aarch64_unknown_linux_gnu=aarch64-linux-gnu-g++ \
    AR_aarch64_unknown_linux_gnu=aarch64-linux-gnu-ar \
    BINDGEN_EXTRA_CLANG_ARGS_aarch64_unknown_linux_gnu=-I/usr/aarch64-linux-gnu/include

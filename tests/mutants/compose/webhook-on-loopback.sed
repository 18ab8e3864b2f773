# file: deploy/compose/weni-edge.toml
# The webhook listens on loopback: the container publishes a port that nobody answers.
s/^\[http\]/[http]\nlisten = "127.0.0.1:8080"/

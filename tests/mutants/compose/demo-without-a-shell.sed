# file: docker-compose.yml
# The demo is built as the target without a shell, which it needs to read the secret.
s/target: debug .*/target: edge/

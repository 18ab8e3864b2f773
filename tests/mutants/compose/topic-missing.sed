# file: docker-compose.yml
# A topic is created under another name.
s/create weni\.dead-letter\.v1 6/create weni.dead-letters.v1 6/

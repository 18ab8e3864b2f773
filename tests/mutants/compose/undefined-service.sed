# file: docker-compose.yml
# A service waits for one that there is not.
s/^      topics: \{ condition/      topic: { condition/

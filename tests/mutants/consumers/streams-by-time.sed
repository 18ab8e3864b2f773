# file: deploy/consumers/kafka-streams/src/main/java/MessageState.java
# the state is the update with the latest time
s/rank > 0 \|\| rank == 0 && time > 0/time > 0/

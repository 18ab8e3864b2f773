# file: deploy/consumers/kafka-streams/src/main/java/MessageState.java
# aborted events are read
s/StreamsConfig.EXACTLY_ONCE_V2/StreamsConfig.AT_LEAST_ONCE/

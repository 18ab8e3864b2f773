# file: deploy/consumers/kafka-streams/src/main/java/MessageState.java
# an order without a value ends it for good
s/value != null && //

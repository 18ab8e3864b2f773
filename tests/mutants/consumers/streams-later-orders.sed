# file: deploy/consumers/kafka-streams/src/main/java/MessageState.java
# an order is joined with messages from before it
s/\.before\(Duration\.ZERO\)//

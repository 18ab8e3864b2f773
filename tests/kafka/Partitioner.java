import java.io.BufferedReader;
import java.io.IOException;
import java.io.InputStreamReader;
import java.io.PrintStream;
import java.nio.charset.StandardCharsets;
import org.apache.kafka.clients.producer.internals.BuiltInPartitioner;

/**
 * The partition that Kafka's own producer gives to a key: one key a line on stdin (UTF-8), one
 * number a line on stdout.
 *
 * <p>usage: java -cp 'libs/*' Partitioner.java PARTITIONS
 */
public final class Partitioner {
    public static void main(String[] arguments) throws IOException {
        int partitions = Integer.parseInt(arguments[0]);
        var keys = new BufferedReader(new InputStreamReader(System.in, StandardCharsets.UTF_8));
        var out = new PrintStream(System.out, false, StandardCharsets.UTF_8);
        for (String key = keys.readLine(); key != null; key = keys.readLine()) {
            byte[] bytes = key.getBytes(StandardCharsets.UTF_8);
            out.println(BuiltInPartitioner.partitionForKey(bytes, partitions));
        }
        out.flush();
    }
}

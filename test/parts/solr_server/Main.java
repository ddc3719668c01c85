import java.util.Properties;
import org.apache.solr.embedded.JettyConfig;
import org.apache.solr.embedded.JettySolrRunner;

/** Starts Solr on 127.0.0.1: Main HOME PORT. */
public class Main {
    public static void main(String[] args) throws Exception {
        JettyConfig config = JettyConfig.builder().setContext("/solr").setPort(Integer.parseInt(args[1])).build();
        JettySolrRunner solr = new JettySolrRunner(args[0], new Properties(), config);
        solr.start(false);
        Thread.currentThread().join();
    }
}

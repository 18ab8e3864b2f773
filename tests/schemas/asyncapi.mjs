// Judges an AsyncAPI document with the parser of the standard's authors: asyncapi.mjs FILE
import { Parser, fromFile } from "@asyncapi/parser";

const { document, diagnostics } = await fromFile(new Parser(), process.argv[2]).parse();
for (const { severity, path, message } of diagnostics) {
  console.log(["error", "warning", "info", "hint"][severity], path.join("."), message);
}
if (!document || diagnostics.some(({ severity }) => severity < 2)) {
  process.exit(1);
}
for (const channel of document.channels().all()) {
  // A reference that leads nowhere has no members.
  const [message] = channel.messages().all();
  const { properties = {} } = (message.payload() ?? message.headers()).json();
  console.log(channel.address(), Object.keys(properties).length, "members");
  if (Object.keys(properties).length < 10) process.exit(1);
}

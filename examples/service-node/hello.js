// The service `hello`: it says greetings in other languages, lists the cloud's zones, and prints what happens.

import { createHash } from "node:crypto";
import { Bus, CloudError } from "./bus.js";

const {
  CAELUM_BUS_URL = "amqp://guest:guest@127.0.0.1/",
  CAELUM_ACCOUNT = "admin",
  CAELUM_PASSWORD = "password",
  CAELUM_EVENTS = "canonicalEvent.#",
} = process.env;

const GREETINGS = { de: "Hallo", fr: "Bonjour", ja: "こんにちは", cy: "Helô" };

function translate({ name, language }) {
  const word = GREETINGS[language];
  if (!word) {
    const known = Object.keys(GREETINGS);
    throw new CloudError("HELLO.1001", "The language is not known", `no greeting in language[${language}]`, { known });
  }
  return { text: `${word}, ${name}!`, servedBy: `Node.js ${process.version}` };
}

async function listZones() {
  const password = createHash("sha512").update(CAELUM_PASSWORD).digest("hex");
  const login = await bus.ask("org.zstack.header.identity.APILogInByAccountMsg", { accountName: CAELUM_ACCOUNT, password });
  const found = await bus.ask("org.zstack.header.zone.APIQueryZoneMsg", { conditions: [] }, login.inventory.uuid);
  console.log(`zones: ${found.inventories.map((one) => one.name).join(", ") || "none"}`);
}

const events = {
  pattern: CAELUM_EVENTS,
  handler: ({ path, content }) => console.log(`event ${path} ${JSON.stringify(content)}`),
};
const bus = new Bus(CAELUM_BUS_URL, "hello", { "org.example.hello.APITranslateGreetingMsg": translate }, events);

for (const signal of ["SIGTERM", "SIGINT"]) {
  process.on(signal, async () => {
    await bus.stop();
    process.exit(0);
  });
}

await bus.start();
console.log("hello is served");
try {
  await listZones();
} catch (error) {
  console.error(`the zones cannot be listed: ${error.message}`);
}

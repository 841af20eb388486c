// A service, a client and a listener on Caelum's bus. docs/bus.md has the whole form; this is all that most need.
//
// Invariant: every request gets one answer, and one that arrives twice is done once. When the broker goes away,
// everything is declared again as soon as it is back.

import { randomUUID } from "node:crypto";
import amqp from "amqplib";

const P2P = "caelum.p2p";
const BROADCAST = "caelum.broadcast";
const PORTAL = "caelum.message.api.portal";
const DIRECT_REPLY = "amq.rabbitmq.reply-to";
const REMEMBERED = 1000;
const LONGEST_PAUSE = 10_000;

/** What goes wrong in a handler, for the caller: an ErrorCode of the API. */
export class CloudError extends Error {
  constructor(code, description, details, opaque) {
    super(details);
    this.wire = { code, description, details, ...(opaque && { opaque }) };
  }
}

export class Bus {
  #url;
  #service;
  #handlers;
  #events;
  #channel = null;
  #waiting = new Map();
  #answers = new Map();
  #stopping = false;

  /** `handlers` by message name: async (fields, request) => result. `events`: {pattern, handler(event)} or null. */
  constructor(url, service, handlers, events = null) {
    this.#url = url;
    this.#service = service;
    this.#handlers = handlers;
    this.#events = events;
  }

  /** Connect, and stay connected. Waits for the first connection. */
  async start() {
    for (let pause = 1000; ; pause = Math.min(pause * 2, LONGEST_PAUSE)) {
      try {
        return await this.#connect();
      } catch (error) {
        console.error(`the broker cannot be reached, next try in ${pause / 1000} s: ${error.message}`);
        await new Promise((resolve) => setTimeout(resolve, pause));
      }
    }
  }

  async stop() {
    this.#stopping = true;
    await this.#channel?.connection.close();
  }

  /** An operation of the API: its answer's content. Throws what the cloud refuses. */
  ask(name, fields, session, seconds = 60) {
    const id = randomUUID();
    const body = { [name]: { ...fields, ...(session && { session: { uuid: session } }) } };
    return new Promise((resolve, reject) => {
      const timer = setTimeout(() => this.#settle(id, new Error(`${name} got no answer in ${seconds} s`)), seconds * 1000);
      this.#waiting.set(id, { resolve, reject, timer });
      this.#channel.publish(P2P, PORTAL, Buffer.from(JSON.stringify(body)), {
        mandatory: true, messageId: id, correlationId: id, replyTo: DIRECT_REPLY,
        contentType: "application/json", headers: { timeout: seconds },
      });
    });
  }

  async #connect() {
    const connection = await amqp.connect(this.#url);
    connection.on("error", () => {}); // its end follows
    connection.on("close", () => this.#lost());
    const channel = await connection.createChannel();
    channel.on("return", (message) => this.#settle(message.properties.correlationId, new Error("no node serves the API")));
    await channel.prefetch(100);
    await this.#serve(channel);
    await channel.consume(DIRECT_REPLY, (message) => this.#take(message), { noAck: true });
    if (this.#events) await this.#follow(channel);
    this.#channel = channel;
  }

  #lost() {
    this.#channel = null;
    for (const id of [...this.#waiting.keys()]) this.#settle(id, new Error("the broker went away"));
    if (!this.#stopping) this.start();
  }

  async #serve(channel) {
    // The same exchange as the nodes declare, so that it does not matter who comes first.
    await channel.assertExchange("caelum.no-route", "fanout", { durable: true });
    await channel.assertExchange(P2P, "topic", { durable: true, alternateExchange: "caelum.no-route" });
    const queue = `caelum.message.${this.#service}`;
    await channel.assertQueue(queue, { durable: false, autoDelete: true });
    await channel.bindQueue(queue, P2P, queue);
    await channel.consume(queue, (message) => message && this.#request(channel, message));
  }

  async #request(channel, message) {
    const { type, messageId, correlationId, replyTo } = message.properties;
    channel.ack(message);
    if (type && type !== "request") return; // "cancel": what has begun goes on
    let answer = this.#answers.get(messageId);
    if (!answer) {
      answer = this.#handle(message);
      this.#answers.set(messageId, answer);
      if (this.#answers.size > REMEMBERED) this.#answers.delete(this.#answers.keys().next().value);
    }
    const body = Buffer.from(JSON.stringify({ MessageReply: await answer }));
    if (!replyTo) return;
    try {
      channel.publish("", replyTo, body, { type: "reply", correlationId, contentType: "application/json" });
    } catch (error) {
      console.error(`an answer was lost with the broker: ${error.message}`); // the caller asks again
    }
  }

  async #handle(message) {
    try {
      const [[name, fields]] = Object.entries(JSON.parse(message.content));
      const handler = this.#handlers[name];
      if (!handler) throw new CloudError("SYS.1011", "The message can not be delivered", `nobody handles ${name} here`);
      return { success: true, result: await handler(fields, message.properties) };
    } catch (error) {
      const internal = { code: "SYS.1000", description: "An internal error happened in system", details: `${error}` };
      return { success: false, error: error.wire ?? internal };
    }
  }

  #take(message) {
    const [content] = Object.values(JSON.parse(message.content));
    this.#settle(message.properties.correlationId, content.success ? null : new Error(content.error.details), content);
  }

  #settle(id, error, content) {
    const waiting = this.#waiting.get(id);
    if (!waiting) return;
    this.#waiting.delete(id);
    clearTimeout(waiting.timer);
    if (error) waiting.reject(error);
    else waiting.resolve(content);
  }

  async #follow(channel) {
    await channel.assertExchange(BROADCAST, "topic", { durable: true });
    const { queue } = await channel.assertQueue("", { exclusive: true });
    await channel.bindQueue(queue, BROADCAST, this.#events.pattern);
    const tell = (message) => message && this.#events.handler(JSON.parse(message.content).CanonicalEvent);
    await channel.consume(queue, tell, { noAck: true });
  }
}

// Renders /openapi.json as a reference. Everything is set as text, never as markup.
"use strict";

const byId = (id) => document.getElementById(id);

function node(tag, text, attributes = {}, children = []) {
  const made = document.createElement(tag);
  if (text) made.textContent = text;
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  made.append(...children);
  return made;
}

function nameOf(ref) {
  return ref.split("/").pop();
}

function typeOf(schema) {
  if (!schema) return "any";
  if (schema.$ref) return nameOf(schema.$ref);
  if (schema.enum) return schema.enum.map((one) => JSON.stringify(one)).join(" | ");
  if (schema.type === "array") return `${typeOf(schema.items)}[]`;
  if (schema.anyOf) return schema.anyOf.map(typeOf).join(" | ");
  if (schema.type === "object" && schema.additionalProperties) return `map of ${typeOf(schema.additionalProperties)}`;
  return schema.type || "any";
}

function limitsOf(schema) {
  const shown = ["minimum", "maximum", "minLength", "maxLength", "minItems", "pattern", "default"];
  return shown.filter((one) => schema && schema[one] !== undefined).map((one) => `${one} ${schema[one]}`).join(", ");
}

function table(rows) {
  const head = node("tr", "", {}, ["Name", "Type", "Notes"].map((one) => node("th", one)));
  const lines = rows.map(([name, schema, notes]) =>
    node("tr", "", {}, [node("td", "", {}, [node("code", name)]), node("td", typeOf(schema)), node("td", notes)]));
  return node("table", "", {}, [head, ...lines]);
}

function rowsOf(schema, prefix = "") {
  const required = new Set(schema.required || []);
  return Object.entries(schema.properties || {}).flatMap(([name, one]) => {
    const notes = [required.has(name) ? "required" : "", limitsOf(one)].filter(Boolean).join("; ");
    const own = [prefix + name, one, notes];
    return one.properties ? [own, ...rowsOf(one, `${prefix}${name}.`)] : [own];
  });
}

function bodies(operation) {
  const schema = operation.requestBody?.content["application/json"]?.schema;
  return schema ? schema.oneOf || [schema] : [];
}

function section(path, verb, operation) {
  const badges = [
    operation["x-admin-only"] ? "administrators" : "",
    operation.security ? "" : "no login",
    operation.responses["202"] ? "job" : "",
  ].filter(Boolean).map((one) => node("span", one, { class: "badge" }));
  const parts = [
    node("h3", operation.summary, {}, badges),
    node("p", "", { class: "route" }, [node("span", verb.toUpperCase(), { class: "verb" }), " ", node("code", path)]),
    node("p", operation.description),
  ];
  if (operation.parameters?.length) {
    parts.push(table(operation.parameters.map((one) =>
      [one.name, one.schema, [one.in, one.required ? "required" : "", one.description || "", limitsOf(one.schema)]
        .filter(Boolean).join("; ")])));
  }
  for (const body of bodies(operation)) parts.push(node("p", "Body"), table(rowsOf(body)));
  const answer = operation.responses["200"]?.content?.["application/json"]?.schema;
  if (answer?.properties) parts.push(node("p", "Answer"), table(rowsOf(answer)));
  return node("section", "", { id: operation.operationId }, parts);
}

function show(api) {
  const operations = Object.entries(api.paths).flatMap(([path, item]) =>
    Object.entries(item).map(([verb, operation]) => ({ path, verb, operation })));
  const content = byId("content");
  content.replaceChildren(node("h2", `${api.info.title} ${api.info.version}`), node("p", api.info.description));
  const links = [];
  for (const tag of api.tags) {
    const own = operations.filter((one) => one.operation.tags[0] === tag.name);
    const entries = own.map((one) => {
      const link = node("a", one.operation.operationId, { href: `#${one.operation.operationId}` });
      const made = section(one.path, one.verb, one.operation);
      content.append(made);
      links.push({ link, made, text: `${one.operation.operationId} ${one.operation.summary} ${one.path}`.toLowerCase() });
      return link;
    });
    byId("index").append(node("h2", tag.name), ...entries);
  }
  for (const [name, schema] of Object.entries(api.components.schemas)) {
    content.append(node("section", "", { id: name }, [node("h3", name), node("p", schema.description), table(rowsOf(schema))]));
  }
  byId("filter").addEventListener("input", (event) => {
    const wanted = event.target.value.toLowerCase();
    for (const one of links) one.link.hidden = one.made.hidden = !one.text.includes(wanted);
  });
  if (location.hash) document.getElementById(location.hash.slice(1))?.scrollIntoView();
}

fetch("/openapi.json").then((answer) => answer.json()).then(show).catch((error) => {
  byId("content").textContent = `The description cannot be loaded: ${error}`;
});

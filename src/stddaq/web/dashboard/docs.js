// The requests of the service, out of its OpenAPI description.

import { get, make, table } from "./service.js";

const main = document.getElementById("requests");

async function show() {
  try {
    const api = (await get("openapi.json")).content;
    const operations = Object.entries(api.paths).flatMap(([path, methods]) => Object.entries(methods).map(([method, operation]) => ({ path, method: method.toUpperCase(), ...operation })));
    main.append(
      make("p", {}, `${api.info.summary}, version ${api.info.version}.`),
      table(["request", "meaning"], operations.map((one) => [make("a", { href: `#${idOf(one)}` }, make("code", {}, `${one.method} ${one.path}`)), one.summary ?? ""])),
      ...operations.map((one) => section(one, api.components?.schemas ?? {})),
    );
  } catch (error) {
    main.append(make("p", { className: "reason", role: "alert" }, error.status === 401 ? "Log in on the page to see the requests." : error.message));
  }
}

const idOf = ({ method, path }) => `${method}${path}`.replace(/[^A-Za-z0-9]+/g, "-");

function section(one, schemas) {
  const body = one.requestBody?.content?.["application/json"]?.schema;
  const parameters = (one.parameters ?? []).map((parameter) => [
    make("code", {}, parameter.name), parameter.in, parameter.required ? "mandatory" : defaultOf(parameter.schema), parameter.description ?? typeOf(parameter.schema)]);
  const answers = Object.entries(one.responses).map(([status, answer]) => [
    status, answer.description, make("code", {}, typeOf(answer.content?.["application/json"]?.schema) || Object.keys(answer.content ?? {}).join(", "))]);
  return make("section", { id: idOf(one) },
    make("h2", {}, make("code", {}, `${one.method} ${one.path}`)),
    make("p", {}, one.description ?? ""),
    parameters.length ? table(["parameter", "in", "default", "meaning"], parameters) : null,
    body ? make("h3", {}, "Body") : null,
    body ? keys(resolved(body, schemas)) : null,
    make("h3", {}, "Answers"),
    table(["status", "meaning", "content"], answers),
    ...answerKeys(one, schemas));
}

function answerKeys(one, schemas) {
  const schema = resolved(one.responses[200]?.content?.["application/json"]?.schema, schemas);
  return schema?.properties ? [make("h3", {}, "Keys of the answer"), keys(schema)] : [];
}

function keys(schema) {
  const rows = Object.entries(schema.properties ?? {}).map(([name, one]) => [
    make("code", {}, name), typeOf(one), schema.required?.includes(name) ? "" : defaultOf(one), one.description ?? ""]);
  return rows.length ? table(["key", "type", "default", "meaning"], rows) : make("p", {}, "a JSON object");
}

const resolved = (schema, schemas) => {
  const one = schema?.items ?? schema;
  return one?.$ref ? schemas[one.$ref.split("/").at(-1)] : one;
};

const defaultOf = (schema) => schema && "default" in schema ? JSON.stringify(schema.default) : "";

function typeOf(schema) {
  if (!schema) return "";
  if (schema.$ref) return schema.$ref.split("/").at(-1);
  if (schema.anyOf) return schema.anyOf.map(typeOf).join(" or ");
  if (schema.enum) return schema.enum.map((value) => JSON.stringify(value)).join(", ");
  if (schema.type === "array") return `list of ${typeOf(schema.items) || "values"}`;
  return schema.type ?? "";
}

show();

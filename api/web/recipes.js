// A job's request as a command or a program that sends it again. Every field that is set is in it, and every name is quoted.

const OTHER = ["images", "names", "layers"]; // of the request, which are not options
const CLI_NAMES = { methods: "method" };
const PLAIN = /^[\w@%+=:.,/-]+$/;

// [field, value] of every option that is set.
const options = (request) => Object.entries(request)
  .filter(([name, value]) => !OTHER.includes(name) && value !== null && value !== undefined && value !== false);

// Files are sent from the current folder: an image's path in an archive or a folder is left out.
const fileNames = (request, name) => request.images.map((sha256, at) => name(request, at)?.split(/[/\\]/).pop() || `${sha256.slice(0, 8)}.png`);

const shell = (text) => (PLAIN.test(text) ? text : `'${text.replaceAll("'", "'\\''")}'`);
const lines = (parts) => parts.join(" \\\n  ");

export function curl(request, { server, key, name }) {
  const file = (text) => (/[",;\\]/.test(text) ? `"${text.replaceAll(/["\\]/g, "\\$&")}"` : text); // curl's own quotes
  const field = ([option, value]) => {
    const text = `${option}=${[value].flat().join(",")}`;
    return `${/[;"\\]|=[@<]/.test(text) ? "--form-string" : "-F"} ${shell(text)}`; // which curl would read as more than text
  };
  return lines(["curl", ...(key ? ["-H 'Authorization: Bearer YOUR-KEY'"] : []), "-H 'Prefer: wait=60'",
    ...fileNames(request, name).map((each) => `-F ${shell(`image=@${file(each)}`)}`),
    ...options(request).map(field), shell(`${server}explain`)]);
}

export function commandLine(request, { server, key, name }) {
  const option = ([field, value]) => {
    if (field === "kernels") return typeof value === "string" ? [`--top ${value.slice("top:".length)}`] : value.map((kernel) => `--kernel ${kernel}`);
    const flag = `--${(CLI_NAMES[field] ?? field).replaceAll("_", "-")}`;
    return value === true ? [flag] : [value].flat().map((each) => `${flag} ${shell(String(each))}`);
  };
  const images = fileNames(request, name).map((each) => shell(each.startsWith("-") ? `./${each}` : each));
  return lines([`${key ? "KERNELSCOPE_API_KEY=YOUR-KEY " : ""}kernelscope explain ${images.join(" ")}`,
    ...options(request).flatMap(option), `--url ${shell(server.replace(/\/$/, ""))}`]);
}

// JSON's texts, numbers and lists are Python's too.
export function python(request, { server, key, name }) {
  const literal = (value) => (value === true ? "True" : Array.isArray(value) ? `[${value.map(literal).join(", ")}]` : JSON.stringify(value));
  const given = options(request).map(([option, value]) => `        ${option}=${literal(value)},\n`).join("");
  return `from kernelscope import Client

with Client(${literal(server.replace(/\/$/, ""))}${key ? ', "YOUR-KEY"' : ""}) as client:
    job = client.explain(
        ${literal(fileNames(request, name))},
${given}    )
    job.wait().check()
    job.save("explained")`;
}

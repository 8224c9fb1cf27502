// The images to explain: chosen, shown, and sent, each once and by itself.

import { $, button, make } from "./dom.js";
import { submit } from "./server.js";

const MOST_IMAGES = 16;
const MOST_LETTERS = 128; // of an image's name
const KINDS = [ // by their first bytes, as files may have any name
  [/^\x89PNG\r\n\x1a\n/, "png"], [/^\xff\xd8\xff/, "jpeg"], [/^RIFF.{4}WEBP/s, "webp"],
  [/^.{4}ftyp(heic|heix|hevc|mif1|msf1)/s, "HEIC"], [/^.{4}ftypavi[fs]/s, "AVIF"], [/^GIF8/, "GIF"],
  [/^(II\*\x00|MM\x00\*)/, "TIFF"], [/^BM/, "BMP"], [/^%PDF/, "PDF"],
];
const USABLE = ["png", "jpeg", "webp"];
const SAMPLES = [
  { name: "colours.png", says: "all colours" },
  { name: "shapes.png", says: "drawn shapes" },
  { name: "astronaut.jpg", says: "a photograph" },
];

let images = []; // { name, url, blob, sha256, sending }: sha256 once the server has the image, sending while it is sent
let current = null; // the image on which the kernels are ranked
let changed = () => {};

export const all = () => images;
export const currentImage = () => current;

async function kindOf(file) {
  const start = await file.slice(0, 16).arrayBuffer().catch(() => { throw unreadable(file); });
  const text = String.fromCharCode(...new Uint8Array(start));
  return KINDS.find(([pattern]) => pattern.test(text))?.[1] ?? null;
}

const unreadable = ({ name }) => new Error(`“${name}” cannot be read. If it is a folder, choose the images in it; if it was moved, choose it again.`);

export async function addFiles(files) {
  const usable = [];
  let problem = null;
  for (const file of files) {
    const kind = await kindOf(file).catch((error) => { problem ??= error; });
    if (USABLE.includes(kind)) usable.push({ name: file.name || "pasted image", url: URL.createObjectURL(file), blob: file });
    else problem ??= new Error(kind ? `“${file.name}” is a ${kind} file. Save it as PNG, JPEG or WebP and choose that.` : `“${file.name}” is not an image that can be used. Choose a PNG, JPEG or WebP file.`);
  }
  add(usable);
  if (problem) throw problem;
}

function add(more) {
  const room = MOST_IMAGES - images.length;
  images.push(...more.slice(0, room));
  if (more.length) current = images[images.length - Math.min(more.length, room)] ?? current;
  draw();
  changed();
  if (more.length > room) throw new Error(`At most ${MOST_IMAGES} images are explained together; ${more.length - room} were left out.`);
}

function draw() {
  $("images").replaceChildren(...images.map((image) => {
    const chosen = button("", () => { current = image; draw(); changed(); }, {
      className: "thumb", ariaPressed: String(image === current), title: `Rank the kernels on ${image.name}`, ariaLabel: image.name,
    });
    chosen.append(make("img", { src: image.url, alt: "" }));
    return make("li", {}, chosen, button("×", () => remove(image), { className: "remove", ariaLabel: `Remove ${image.name}` }));
  }));
}

function remove(image) {
  images = images.filter((each) => each !== image);
  if (current === image) current = images[0] ?? null;
  draw();
  changed();
  ($("images").querySelector(".thumb") ?? $("files")).focus();
}

// Samples

export async function addSample(name) {
  const blob = await (await fetch(`web/${name}`)).blob();
  images = images.filter((image) => image.name !== name);
  add([{ name, url: `web/${name}`, blob }]);
}

function drawSamples(guard) {
  $("samples").replaceChildren(...SAMPLES.map(({ name, says }) => {
    const chosen = button("", guard(() => addSample(name)), { className: "thumb", title: says, ariaLabel: `Sample: ${says}` });
    chosen.append(make("img", { src: `web/${name}`, alt: "", width: 64, height: 64, loading: "lazy" }));
    return chosen;
  }));
}

// Sending

const shortName = (image) => [...image.name.replace(/[\u0000-\u001f\u007f-\u009f]/g, "")].slice(0, MOST_LETTERS).join("") || null;
const source = (image) => ({ sha256: image.sha256, name: shortName(image) });
const isUnknown = (error) => Boolean(error.problem?.type?.endsWith("/problems/unknown-image"));

async function form(image, where) {
  await image.blob.slice(0, 1).arrayBuffer().catch(() => { throw unreadable(image); });
  const fields = new FormData();
  for (const [name, value] of Object.entries(where)) fields.set(name, value);
  fields.set("image", image.blob, shortName(image) ?? "image");
  return fields;
}

// A job that ranks the kernels of a layer on an image. It carries the image unless the server has it.
export async function rankingOf(image, where) {
  while (image.sending) await image.sending.catch(() => {});
  if (image.sha256) {
    try {
      return await submit("activations", { ...where, images: [source(image)] });
    } catch (error) {
      if (!isUnknown(error) || !image.blob) throw error;
      delete image.sha256; // it has expired
    }
  }
  image.sending = form(image, where).then((fields) => submit("activations", fields));
  try {
    const job = await image.sending;
    [image.sha256] = job.request.images;
    return job;
  } finally {
    delete image.sending;
  }
}

// A job that explains the images, which are sent before: `report` is called with the name of each.
export async function explained(body, report) {
  const { model, layer } = body;
  const sent = [...images]; // others may be chosen meanwhile
  for (let retry = true; ; retry = false) {
    for (const image of sent) {
      while (image.sending) await image.sending.catch(() => {});
      if (image.sha256) continue;
      report(image.name);
      await rankingOf(image, { model, layer });
    }
    try {
      return await submit("explain", { ...body, images: sent.map(source) });
    } catch (error) {
      if (!retry || !isUnknown(error)) throw error;
      for (const image of sent) if (image.blob) delete image.sha256;
    }
  }
}

// An image's name: as in the job's request, or as it was chosen here.
export const nameOf = ({ names, images: digests }, at) => names[at] ?? images.find(({ sha256 }) => sha256 === digests[at])?.name;

// Takes the images of a job; `url` returns the address of a picture of each.
export function replace(request, url) {
  images = request.images.map((sha256, at) => ({
    ...(images.find((image) => image.sha256 === sha256) ?? { url: url(sha256), sha256 }),
    name: nameOf(request, at) ?? `image ${at}`,
  }));
  current = images[0];
  draw();
}

export function start(guard, onChange) {
  changed = onChange;
  drawSamples(guard);
  $("files").addEventListener("change", guard(async () => {
    const files = [...$("files").files];
    $("files").value = "";
    await addFiles(files);
  }));
}

// Images that are dropped anywhere on the page, or pasted: as files, or as links of this site.

import { $ } from "./dom.js";
import { addFiles } from "./images.js";

const ADVICE = "This page may not load images of other sites. Right-click the image there, choose “Copy image”, and paste it here (Ctrl+V); or save it and choose the file.";

// The address that is dragged with a link or an image of a page.
function addressIn(data) {
  const line = data.getData("text/uri-list").split(/\r?\n/).find((each) => each && !each.startsWith("#")) ?? data.getData("text/plain").trim();
  return URL.canParse(line) ? new URL(line) : null;
}

async function fetched(address) {
  if (address.origin !== location.origin) throw new Error(ADVICE);
  const response = await fetch(address).catch(() => null);
  if (!response?.ok) throw new Error(`${address.pathname} cannot be loaded.`);
  return new File([await response.blob()], decodeURIComponent(address.pathname.split("/").pop()) || "image");
}

async function take(data, what) {
  if (data.files.length) return addFiles([...data.files]);
  const address = addressIn(data);
  if (!address) throw new Error(`What was ${what} is not an image. Drop or paste PNG, JPEG or WebP files.`);
  return addFiles([await fetched(address)]);
}

const isText = (target) => target instanceof Element && target.matches("input, textarea");

export function start(guard) {
  const taken = guard(take);
  const over = (on) => $("drop").classList.toggle("over", on);
  addEventListener("dragover", (event) => { event.preventDefault(); over(true); }); // else the browser would open a dropped file
  addEventListener("dragleave", (event) => { if (!event.relatedTarget) over(false); });
  addEventListener("dragend", () => over(false));
  addEventListener("drop", (event) => {
    if (isText(event.target) && !event.dataTransfer.files.length) return;
    event.preventDefault();
    over(false);
    taken(event.dataTransfer, "dropped");
  });
  addEventListener("paste", (event) => {
    if (event.clipboardData.files.length) taken(event.clipboardData, "pasted");
  });
}

// Classify a dropped image with the exported run in model/, by ONNX Runtime's WebAssembly.

import * as ort from "./node_modules/onnxruntime-web/dist/ort.wasm.bundle.min.mjs";
import { prepared } from "./resize.js";

const SHOWN = 5;
const find = (id) => document.getElementById(id);

ort.env.wasm.wasmPaths = new URL("node_modules/onnxruntime-web/dist/", document.baseURI).href;
ort.env.wasm.numThreads = 1; // more need headers that a plain file server does not send

async function loaded() {
  const card = await (await fetch("model/export.json")).json();
  if (card.target !== "onnx" || card.graphs.length !== 1) {
    throw new Error("export the run with --to onnx --exits full");
  }
  const session = await ort.InferenceSession.create(`model/${card.graphs[0]}`);
  return { card, session };
}

// RGB bytes of a file, upright, on white where it is transparent, without colour management.
async function pixelsOf(file) {
  const bitmap = await createImageBitmap(file, {
    imageOrientation: "from-image", colorSpaceConversion: "none", premultiplyAlpha: "none",
  });
  const { width, height } = bitmap;
  const context = new OffscreenCanvas(width, height).getContext("2d");
  context.fillStyle = "white";
  context.fillRect(0, 0, width, height);
  context.drawImage(bitmap, 0, 0);
  const { data } = context.getImageData(0, 0, width, height);
  const pixels = new Uint8Array(width * height * 3);
  for (let i = 0; i < width * height; i++) pixels.set(data.subarray(4 * i, 4 * i + 3), 3 * i);
  return { pixels, width, height };
}

function softmax(logits) {
  const most = Math.max(...logits);
  const powers = Array.from(logits, (value) => Math.exp(value - most));
  const sum = powers.reduce((a, b) => a + b, 0);
  return powers.map((value) => value / sum);
}

// [{ name, probability }, ...] of an image file, most probable first.
export async function classified(file) {
  const { card, session } = await model;
  const [height, width] = card.preprocessing.image_size;
  const images = prepared(await pixelsOf(file), card.preprocessing);
  const given = new ort.Tensor("uint8", images, [1, height, width, 3]);
  const { logits } = await session.run({ images: given });
  const temperature = card.temperature ?? 1; // folders of an older vitune have none
  return softmax(logits.data.map((value) => value / temperature))
    .map((probability, index) => ({ name: card.classes[index], probability }))
    .sort((a, b) => b.probability - a.probability);
}

function line(name, probability) {
  const row = document.createElement("div");
  row.className = "row";
  row.innerHTML = '<span></span><div><div class="bar"></div></div><span class="num"></span>';
  row.children[0].textContent = name;
  row.querySelector(".bar").style.width = `${100 * probability}%`;
  row.children[2].textContent = `${(100 * probability).toFixed(1)} %`;
  return row;
}

async function show(file) {
  try {
    find("shown").src = URL.createObjectURL(file);
    find("shown").hidden = false;
    const started = performance.now();
    const found = await classified(file);
    find("told").textContent = `${file.name}: ${(performance.now() - started).toFixed(0)} ms`;
    find("bars").replaceChildren(
      ...found.slice(0, SHOWN).map(({ name, probability }) => line(name, probability)));
    document.dispatchEvent(new CustomEvent("classified", { detail: found }));
  } catch (error) {
    find("bars").replaceChildren();
    find("told").textContent = `${file.name}: not an image that this browser reads (${error.message})`;
    document.dispatchEvent(new CustomEvent("classified", { detail: { error: String(error) } }));
  }
}

const drop = find("drop");
for (const type of ["dragenter", "dragover"]) {
  drop.addEventListener(type, (event) => { event.preventDefault(); drop.classList.add("over"); });
}
drop.addEventListener("dragleave", () => drop.classList.remove("over"));
drop.addEventListener("drop", (event) => {
  event.preventDefault();
  drop.classList.remove("over");
  if (event.dataTransfer.files.length) show(event.dataTransfer.files[0]);
});
find("choose").addEventListener("change", (event) => {
  if (event.target.files.length) show(event.target.files[0]);
});

const model = loaded();
model.then(
  ({ card }) => { find("told").textContent = `${card.method} on ${card.backbone}, ${card.classes.length} classes`; },
  (error) => { find("told").textContent = `no model: ${error.message}`; },
).finally(() => { document.body.dataset.ready = "yes"; });

// Look at an image closely: zoom and move it, and choose which grey levels are shown.
import { find } from "./dom.js";

let picture = null;
let pixels = null;
let offset = { x: 0, y: 0 };

const WHOLE = { window: 256, level: 128 };

/**
 * Return the shown value of each value from 0 to 255, for a window and a level, by the linear
 * function of DICOM: the whole window shows each value as it is.
 */
export function levels(window, level) {
  return Uint8ClampedArray.from({ length: 256 }, (_, value) => ((value - level + 0.5) / (window - 1) + 0.5) * 255);
}

function recolour() {
  const table = levels(Number(find("window").value), Number(find("level").value));
  const source = pixels.data;
  const shown = new ImageData(pixels.width, pixels.height);
  for (let place = 0; place < source.length; place += 4) {
    shown.data[place] = table[source[place]];
    shown.data[place + 1] = table[source[place + 1]];
    shown.data[place + 2] = table[source[place + 2]];
    shown.data[place + 3] = source[place + 3];
  }
  picture.getContext("2d").putImageData(shown, 0, 0);
}

function draw() {
  const canvas = find("canvas");
  canvas.width = canvas.clientWidth * devicePixelRatio;
  canvas.height = canvas.clientHeight * devicePixelRatio;
  const fit = Math.min(canvas.width / picture.width, canvas.height / picture.height);
  const scale = fit * Number(find("zoom").value);
  const context = canvas.getContext("2d");
  context.imageSmoothingEnabled = scale < 4;
  context.translate(canvas.width / 2 + offset.x, canvas.height / 2 + offset.y);
  context.scale(scale, scale);
  context.drawImage(picture, -picture.width / 2, -picture.height / 2);
}

function reset() {
  find("zoom").value = 1;
  find("window").value = WHOLE.window;
  find("level").value = WHOLE.level;
  offset = { x: 0, y: 0 };
  recolour();
  draw();
}

function zoom(factor) {
  find("zoom").value = Number(find("zoom").value) * factor;
  draw();
}

function move(x, y) {
  offset = { x: offset.x + x, y: offset.y + y };
  draw();
}

const KEYS = {
  "+": () => zoom(1.25),
  "=": () => zoom(1.25),
  "-": () => zoom(0.8),
  ArrowLeft: () => move(40, 0),
  ArrowRight: () => move(-40, 0),
  ArrowUp: () => move(0, 40),
  ArrowDown: () => move(0, -40),
};

/** Show an image. */
export async function view(image) {
  const bitmap = await createImageBitmap(image.picture.blob);
  picture = new OffscreenCanvas(bitmap.width, bitmap.height);
  const context = picture.getContext("2d", { willReadFrequently: true });
  context.drawImage(bitmap, 0, 0);
  pixels = context.getImageData(0, 0, bitmap.width, bitmap.height);
  find("viewer-title").textContent = image.name;
  find("viewer").showModal();
  reset();
}

/** Connect the controls of the viewer. */
export function prepareViewer() {
  const canvas = find("canvas");
  for (const id of ["window", "level"]) {
    find(id).addEventListener("input", () => { recolour(); draw(); });
  }
  find("zoom").addEventListener("input", draw);
  find("viewer-reset").addEventListener("click", reset);
  find("viewer-close").addEventListener("click", () => find("viewer").close());
  addEventListener("resize", () => { if (find("viewer").open) draw(); });
  canvas.addEventListener("wheel", (event) => {
    event.preventDefault();
    zoom(event.deltaY < 0 ? 1.15 : 1 / 1.15);
  });
  canvas.addEventListener("pointermove", (event) => {
    if (event.buttons) move(event.movementX * devicePixelRatio, event.movementY * devicePixelRatio);
  });
  canvas.addEventListener("keydown", (event) => {
    if (!(event.key in KEYS)) return;
    event.preventDefault();
    KEYS[event.key]();
  });
}

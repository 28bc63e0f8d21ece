
"use strict";
// Adds ways to look at a pair of pictures. Without it they stand side by side.

const AMPLIFY = 8;
const PERIOD = 700; // ms for each picture: fewer than three flashes a second
const VIEWS = [
  ["side", "Side by side"],
  ["slider", "Slider"],
  ["flicker", "Flicker"],
  ["difference", `Difference × ${AMPLIFY}`],
];

function element(name, attributes = {}, ...children) {
  const made = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  made.append(...children);
  return made;
}

// |reference - candidate|, amplified, in the canvas; the largest difference of a channel, of 255.
function drawDifference(canvas, reference, candidate) {
  const width = (canvas.width = reference.naturalWidth);
  const height = (canvas.height = reference.naturalHeight);
  const context = canvas.getContext("2d", { willReadFrequently: true });
  const [a, b] = [reference, candidate].map((image) => {
    context.drawImage(image, 0, 0, width, height);
    return context.getImageData(0, 0, width, height);
  });
  let largest = 0;
  for (let i = 0; i < a.data.length; i++) {
    if (i % 4 === 3) continue; // opacity
    const difference = Math.abs(a.data[i] - b.data[i]);
    largest = Math.max(largest, difference);
    a.data[i] = AMPLIFY * difference; // the array clamps at 255
  }
  context.putImageData(a, 0, 0);
  return largest;
}

function enhance(compare, number) {
  const stage = compare.querySelector(".stage");
  const reference = stage.querySelector(".reference img");
  const candidate = stage.querySelector(".candidate img");
  if (!reference || !candidate) return;
  const name = compare.dataset.name;

  const views = element("fieldset", { class: "views" }, element("legend", {}, "View"));
  for (const [value, text] of VIEWS) {
    const radio = element("input", { type: "radio", name: `view-${number}`, value });
    radio.checked = value === "side";
    views.append(element("label", {}, radio, text));
  }
  const split = element("input", {
    type: "range", class: "split", min: 0, max: 100, step: 1,
    "aria-label": `${name}: PyTorch on the left of the line, Core ML on its right`,
  });
  const canvas = element("canvas", { role: "img", "aria-label": `${name}: difference` });
  if (reference.classList.contains("tiny")) canvas.classList.add("tiny");
  const caption = element("figcaption", { "aria-live": "polite" });
  const difference = element("figure", { class: "difference" }, canvas, caption);
  const turn = element("button", { type: "button", class: "turn" });
  compare.prepend(views);
  stage.append(split, difference);
  compare.append(turn);

  let timer = null;
  function show(which) {
    compare.dataset.shown = which;
  }
  function flip() {
    show(compare.dataset.shown === "reference" ? "candidate" : "reference");
  }
  function play(on) {
    clearInterval(timer);
    timer = on ? setInterval(flip, PERIOD) : null;
    turn.textContent = on ? "Stop" : "Change picture";
  }
  function place() {
    stage.style.setProperty("--split", `${split.value}%`);
    stage.style.setProperty("--height", `${reference.clientHeight}px`);
  }
  function choose(view) {
    compare.dataset.view = view;
    show("reference");
    play(view === "flicker" && !matchMedia("(prefers-reduced-motion: reduce)").matches);
    if (view === "slider") place();
    if (view === "difference") {
      const largest = drawDifference(canvas, reference, candidate);
      caption.textContent = largest
        ? `Black where they are equal. Largest difference: ${largest} of 255.`
        : "Every pixel is equal.";
    }
  }
  views.addEventListener("change", (event) => choose(event.target.value));
  split.addEventListener("input", place);
  turn.addEventListener("click", () => (timer === null ? flip() : play(false)));
  new ResizeObserver(place).observe(reference);
  choose("side");
}

document.querySelectorAll(".compare").forEach(enhance);

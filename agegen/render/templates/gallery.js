"use strict";
// The faces are data, not elements: only those in view have elements, so that a page of 15,000 stays fast.
const $ = (id) => document.getElementById(id);
const { summary, faces } = JSON.parse($("data").textContent);
const AXIS_YEARS = 120;
// Pixels of a cell of the gallery: the thumbnail, and two lines.
const CELL_WIDTH = 112, CELL_HEIGHT = 148;
// Rows above and below the window that exist as well, so that scrolling shows no gaps.
const SPARE_ROWS = 4;
// A longer list of folders is of no use; the search for names finds the others.
const MAX_FOLDERS = 500;

const make = (tag, properties = {}, ...children) => {
  const element = Object.assign(document.createElement(tag), properties);
  element.append(...children);
  return element;
};
const format = (number) => number.toLocaleString("en");
const folderOf = (file) => file.slice(0, Math.max(file.lastIndexOf("/"), file.lastIndexOf("\\"), 0));
const probabilityOf = (face) => Math.max(face.p_female, 1 - face.p_female);
const hasAge = (face) => face.age !== undefined;
const describeAge = (face) => hasAge(face) ? `${Math.round(face.age)} (${Math.round(face.age_low)}–${Math.round(face.age_high)})` : "no age";
const describeGender = (face) => `${face.gender} ${probabilityOf(face).toFixed(2)}`;
faces.forEach((face, index) => { face.index = index; face.folder = folderOf(face.file); face.doubts ??= []; });

// Histogram

const bars = summary.bins.map((bin, index) => makeBar(bin, index, Math.max(1, ...summary.bins.map((one) => one.count))));
const firstBar = summary.bins.findIndex((bin) => bin.count > 0);
const notes = $("ages-note").textContent;

function makeBar(bin, index, most) {
  const from = index * summary.years, to = from + summary.years - 1;
  const column = make("i");
  column.style.height = `${100 * bin.count / most}%`;
  if (bin.count) column.style.minHeight = "2px";
  const bar = make("button", { type: "button", disabled: !bin.count, tabIndex: -1 }, column);
  const interval = bin.count ? `; average 90 % interval ${Math.round(bin.low)}–${Math.round(bin.high)}` : "";
  const text = `${from}–${to} years: ${format(bin.count)} ${bin.count === 1 ? "face" : "faces"}${interval}`;
  bar.setAttribute("aria-label", text);
  bar.setAttribute("aria-pressed", "false");
  const show = () => showInterval(bin.low, bin.high, undefined, text);
  bar.addEventListener("mouseenter", () => bin.count && show());
  bar.addEventListener("mouseleave", hideInterval);
  bar.addEventListener("focus", show);
  bar.addEventListener("blur", hideInterval);
  bar.addEventListener("click", () => selectAges(from, to, bar.getAttribute("aria-pressed") === "true"));
  return bar;
}

function selectAges(from, to, selected) {
  $("age-from").value = selected ? "" : from;
  // Ages are shown without decimals but kept with one: the bar of 30–34 ends before 35.
  $("age-to").value = selected ? "" : to;
  applyFilters();
}

function showInterval(low, high, age, text) {
  if (low === undefined) { hideInterval(); return; }
  $("range").style.cssText = `left: ${100 * low / AXIS_YEARS}%; width: ${100 * (high - low) / AXIS_YEARS}%`;
  if (age === undefined) $("point").removeAttribute("style");
  else $("point").style.cssText = `left: ${100 * age / AXIS_YEARS}%`;
  $("ages-note").textContent = text;
}

function hideInterval() {
  for (const id of ["range", "point"]) $(id).removeAttribute("style");
  $("ages-note").textContent = notes;
}

function showFaceInterval(face) {
  showInterval(face.age_low, face.age_high, face.age, `${describeAge(face)} years: ${face.file}`);
}

$("ages").append(...bars);
if (firstBar >= 0) bars[firstBar].tabIndex = 0;
$("ages").addEventListener("keydown", (event) => {
  const step = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
  if (!step) return;
  event.preventDefault();
  let index = bars.indexOf(document.activeElement) + step;
  while (bars[index]?.disabled) index += step;
  if (!bars[index]) return;
  bars.forEach((bar) => { bar.tabIndex = -1; });
  bars[index].tabIndex = 0;
  bars[index].focus();
});

// Filters

function fillFilters() {
  const reasons = countEach(faces.flatMap((face) => face.doubts));
  const doubtful = faces.filter((face) => face.doubts.length).length;
  $("doubts").append(new Option(`any doubt (${format(doubtful)})`, "any"), new Option(`no doubt (${format(faces.length - doubtful)})`, "none"));
  for (const [reason, count] of reasons) $("doubts").append(new Option(`${reason} (${format(count)})`, `=${reason}`));
  // A folder includes those below it.
  const folders = countEach(faces.flatMap((face) => listParents(face.folder)));
  const shown = folders.slice(0, MAX_FOLDERS).sort(([a], [b]) => a < b ? -1 : 1);
  for (const [folder, count] of shown) $("folder").append(new Option(`${folder} (${format(count)})`, `=${folder}`));
  $("folder").parentElement.hidden = folders.length < 2;
}

function countEach(values) {
  const counts = new Map();
  for (const value of values) counts.set(value, (counts.get(value) ?? 0) + 1);
  return [...counts].sort(([, a], [, b]) => b - a);
}

function listParents(folder) {
  const parents = [];
  for (let one = folder; one; one = folderOf(one)) parents.push(one);
  return parents;
}

const readNumber = (id, otherwise) => $(id).value === "" ? otherwise : Number($(id).value);

function makeTest() {
  const genders = new Set([...document.querySelectorAll("[name=gender]:checked")].map((box) => box.value));
  const limitsAge = $("age-from").value !== "" || $("age-to").value !== "";
  const [ageFrom, ageTo] = [readNumber("age-from", -Infinity), readNumber("age-to", Infinity)];
  const [pFrom, pTo] = [readNumber("p-from", 0), readNumber("p-to", 1)];
  const doubt = $("doubts").value, folder = $("folder").value.slice(1), name = $("name").value.toLowerCase();
  return (face) => genders.has(face.gender)
    && (!limitsAge || (hasAge(face) && face.age >= ageFrom && face.age < ageTo + 1))
    && probabilityOf(face) >= pFrom - 1e-9 && probabilityOf(face) <= pTo + 1e-9
    && (!doubt || (doubt === "any" ? face.doubts.length > 0 : doubt === "none" ? !face.doubts.length : face.doubts.includes(doubt.slice(1))))
    && (!folder || face.folder === folder || face.folder.startsWith(`${folder}/`) || face.folder.startsWith(`${folder}\\`))
    && (!name || face.file.toLowerCase().includes(name));
}

const compareNames = new Intl.Collator("en", { numeric: true }).compare;
// Comparing names takes long, so they are ranked once, when they are first needed.
const rankOf = (face) => {
  if (face.rank === undefined) [...faces].sort((a, b) => compareNames(a.file, b.file) || a.index - b.index).forEach((one, rank) => { one.rank = rank; });
  return face.rank;
};
// Faces without the value are last.
const by = (value) => (a, b) => (value(a) ?? Infinity) - (value(b) ?? Infinity) || a.index - b.index;
const ORDERS = {
  order: (a, b) => a.index - b.index,
  youngest: by((face) => face.age),
  oldest: by((face) => hasAge(face) ? -face.age : undefined),
  least: by(probabilityOf),
  most: by((face) => -probabilityOf(face)),
  widest: by((face) => hasAge(face) ? face.age_low - face.age_high : undefined),
  score: by((face) => face.score),
  name: (a, b) => rankOf(a) - rankOf(b),
};

let chosen = faces;
let active = 0;

function applyFilters() {
  chosen = faces.filter(makeTest()).sort(ORDERS[$("sort").value]);
  active = 0;
  const total = `${format(faces.length)} ${faces.length === 1 ? "face" : "faces"} shown`;
  $("count").textContent = chosen.length < faces.length ? `${format(chosen.length)} of ${total}` : faces.length === 1 ? total : `All ${total}`;
  const [from, to] = [$("age-from").value, $("age-to").value];
  bars.forEach((bar, index) => {
    const start = index * summary.years;
    bar.setAttribute("aria-pressed", String(from === String(start) && to === String(start + summary.years - 1)));
  });
  layOut();
}

$("filters").addEventListener("input", applyFilters);
$("filters").addEventListener("submit", (event) => event.preventDefault());
// The fields have their first values only after this event.
$("filters").addEventListener("reset", () => setTimeout(applyFilters));

// Gallery

const grid = $("grid");
const cells = new Map();
let columns = 1;
// The face that the viewer shows.
let viewed = 0;

function layOut() {
  columns = Math.max(1, Math.floor(grid.clientWidth / CELL_WIDTH));
  grid.style.height = `${Math.ceil(chosen.length / columns) * CELL_HEIGHT}px`;
  for (const cell of cells.values()) cell.remove();
  cells.clear();
  showCells();
}

function showCells() {
  const top = -grid.getBoundingClientRect().top;
  const first = Math.max(0, Math.floor(top / CELL_HEIGHT) - SPARE_ROWS) * columns;
  const last = Math.min(chosen.length, (Math.ceil((top + innerHeight) / CELL_HEIGHT) + SPARE_ROWS) * columns);
  for (const [index, cell] of cells) {
    // The active face always exists, because it is the one that Tab reaches.
    if ((index < first || index >= last) && index !== active) { cell.remove(); cells.delete(index); }
  }
  for (let index = first; index < last; index += 1) showCell(index);
  if (chosen.length) showCell(active);
}

function showCell(index) {
  if (cells.has(index)) return;
  const cell = makeCell(chosen[index], index);
  const width = grid.clientWidth / columns;
  cell.style.cssText = `width: ${width}px; height: ${CELL_HEIGHT}px; transform: translate(${index % columns * width}px, ${Math.floor(index / columns) * CELL_HEIGHT}px)`;
  // In the order of the faces, which is that of screen readers.
  const after = [...cells.keys()].filter((other) => other > index);
  grid.insertBefore(cell, after.length ? cells.get(Math.min(...after)) : null);
  cells.set(index, cell);
}

function makeCell(face, index) {
  const button = make("button", { type: "button", tabIndex: index === active ? 0 : -1, title: face.file },
    makeThumbnail(face), make("span", { textContent: describeAge(face) }), make("small", { textContent: describeGender(face) }));
  if (face.doubts.length) button.append(make("span", { className: "mark", textContent: "?", title: face.doubts.join(", ") }));
  const doubts = face.doubts.length ? `; doubts: ${face.doubts.join(", ")}` : "";
  button.setAttribute("aria-label", `${describeAge(face)}, ${describeGender(face)}, ${face.file}${doubts}`);
  button.addEventListener("click", () => { activate(index); openViewer(); });
  button.addEventListener("focus", () => { activate(index); showFaceInterval(face); });
  button.addEventListener("mouseenter", () => showFaceInterval(face));
  button.addEventListener("mouseleave", hideInterval);
  button.addEventListener("blur", hideInterval);
  const cell = make("li", {}, button);
  cell.setAttribute("aria-setsize", chosen.length);
  cell.setAttribute("aria-posinset", index + 1);
  return cell;
}

function makeThumbnail(face) {
  if (!face.thumb) return make("span", { className: "missing", textContent: "no picture" });
  return make("img", { alt: "", decoding: "async", src: `data:image/jpeg;base64,${face.thumb}` });
}

function activate(index) {
  const former = cells.get(active)?.firstChild;
  if (former) former.tabIndex = -1;
  active = index;
  showCell(index);
  cells.get(index).firstChild.tabIndex = 0;
}

function moveTo(index) {
  activate(Math.min(Math.max(index, 0), chosen.length - 1));
  const button = cells.get(active).firstChild;
  button.focus({ preventScroll: true });
  button.scrollIntoView({ block: "nearest" });
}

grid.addEventListener("keydown", (event) => {
  const page = Math.max(1, Math.floor(innerHeight / CELL_HEIGHT) - 1) * columns;
  const steps = { ArrowLeft: -1, ArrowRight: 1, ArrowUp: -columns, ArrowDown: columns, PageUp: -page, PageDown: page, Home: -Infinity, End: Infinity };
  if (!(event.key in steps) || event.ctrlKey || event.altKey || event.metaKey) return;
  event.preventDefault();
  moveTo(active + steps[event.key]);
});

let waiting = false;
addEventListener("scroll", () => {
  if (waiting) return;
  waiting = true;
  requestAnimationFrame(() => { waiting = false; showCells(); });
}, { passive: true });
let lastWidth = 0;
new ResizeObserver(() => {
  if (grid.clientWidth !== lastWidth) { lastWidth = grid.clientWidth; layOut(); }
}).observe(grid);
addEventListener("resize", showCells);

// Viewer: a face in its photo

const viewer = $("viewer");

function openViewer() {
  showFace(chosen[active]);
  if (!viewer.open) viewer.showModal();
}

function showFace(face) {
  viewed = active;
  $("viewer-title").textContent = `${describeAge(face)}, ${face.gender}`;
  // A disabled button would lose the focus, and with it the keys.
  $("previous").ariaDisabled = String(active === 0);
  $("next").ariaDisabled = String(active === chosen.length - 1);
  $("facts").replaceChildren(...listFacts(face).flatMap(([name, value]) => [make("dt", { textContent: name }), make("dd", {}, value)]));
  if (face.href) showPhoto(face);
  else showCrop(face, "The photo does not lie in the folder of this page or below; this is the crop that the model saw.");
}

function listFacts(face) {
  const seconds = (value) => `${value.toFixed(1)} s`;
  return [
    ["file", face.href ? make("a", { href: face.href, target: "_blank", rel: "noopener noreferrer", textContent: face.file }) : face.file],
    ["age", hasAge(face) ? `${face.age.toFixed(1)}, 90 % interval ${Math.round(face.age_low)}–${Math.round(face.age_high)}` : "none"],
    ["gender", `${face.gender}; P(female) ${face.p_female.toFixed(2)}`],
    ["doubts", face.doubts.join(", ")],
    ["detection score", face.score?.toFixed(2)],
    ["face", face.box && face.person === undefined ? String(face.face) : undefined],
    ["person", face.person === undefined ? undefined : String(face.person)],
    ["page", face.page === undefined ? undefined : String(face.page)],
    ["time", face.time === undefined ? undefined : seconds(face.time)],
    ["seen", face.first === undefined ? undefined : `${seconds(face.first)} to ${seconds(face.last)}, in ${face.frames} frames`],
  ].filter(([, value]) => value);
}

function showPhoto(face) {
  const isVideo = face.time !== undefined && !/\.(gif|webp|a?png)$/i.test(face.file);
  const media = isVideo ? make("video", { muted: true, preload: "auto", controls: true }) : make("img", { alt: `The photo with the face, ${face.file}` });
  const isCurrent = () => media.isConnected;
  media.addEventListener("error", () => isCurrent() && showCrop(face, "This browser cannot show the photo; this is the crop that the model saw."));
  media.addEventListener(isVideo ? "loadedmetadata" : "load", () => isCurrent() && placeBox(face, media));
  if (isVideo) media.addEventListener("play", () => $("stage").querySelector(".box")?.remove());
  $("viewer-note").textContent = "Loading the photo …";
  $("stage").replaceChildren(media);
  sizeStage(face.width ?? 4, face.height ?? 3, Infinity);
  media.src = isVideo ? `${face.href}#t=${face.time}` : face.href;
}

function placeBox(face, media) {
  const [width, height] = [media.videoWidth ?? media.naturalWidth, media.videoHeight ?? media.naturalHeight];
  sizeStage(width, height, width);
  const [fullWidth, fullHeight] = [face.width ?? width, face.height ?? height];
  // Boxes refer to the upright photo, as browsers show it, except for formats of which they ignore the orientation.
  const isSame = Math.abs(width / height / (fullWidth / fullHeight) - 1) < 0.02;
  $("viewer-note").textContent = !face.box ? "The whole image was taken as an aligned crop." : isSame ? "" : "This browser shows the photo in another orientation, so the box of the face cannot be drawn.";
  if (!face.box || !isSame) return;
  const [left, top, right, bottom] = face.box;
  const box = make("div", { className: "box" });
  box.style.cssText = `left: ${100 * left / fullWidth}%; top: ${100 * top / fullHeight}%; width: ${100 * (right - left) / fullWidth}%; height: ${100 * (bottom - top) / fullHeight}%`;
  $("stage").append(box);
}

function showCrop(face, note) {
  $("viewer-note").textContent = note;
  $("stage").replaceChildren(makeThumbnail(face));
  sizeStage(1, 1, 384);
}

// As large as the window allows, but with the proportions of the photo, so that per cent of it are per cent of the photo.
function sizeStage(width, height, most) {
  $("stage").style.cssText = `aspect-ratio: ${width} / ${height}; width: min(100%, ${65 * width / height}vh${most === Infinity ? "" : `, ${most}px`})`;
}

function step(by) {
  if (!chosen[active + by]) return;
  activate(active + by);
  cells.get(active).scrollIntoView({ block: "nearest" });
  showFace(chosen[active]);
}

$("previous").addEventListener("click", () => step(-1));
$("next").addEventListener("click", () => step(1));
$("close").addEventListener("click", () => viewer.close());
viewer.addEventListener("click", (event) => { if (event.target === viewer) viewer.close(); });
viewer.addEventListener("keydown", (event) => {
  if (event.target.tagName === "VIDEO") return;
  if (event.key === "ArrowLeft") step(-1);
  if (event.key === "ArrowRight") step(1);
});
// Browsers first focus the face from which the viewer was opened, not the last one that it showed.
viewer.addEventListener("close", () => { $("stage").replaceChildren(); showCells(); moveTo(viewed); });

fillFilters();
applyFilters();

// Images: tiles in lists, and one of them large. A tile shows its part of a sheet once it comes into view.

const CHUNK = 120; // tiles that are added at a time
const places = new Int32Array(run.cluster.length); // where each image lies on the sheets
run.order.forEach((image, place) => (places[image] = place));
const sheetOf = (place) => {
  let low = 0;
  let high = run.sheets.length - 1;
  while (low < high) {
    const middle = (low + high + 1) >> 1;
    if (run.sheets[middle].first <= place) low = middle;
    else high = middle - 1;
  }
  return low;
};

// The address of a sheet: a file, or what the page itself holds, decoded once.
const embedded = [...document.querySelectorAll("img.sheet")];
const addresses = new Map();
function address(sheet) {
  if (run.sheets[sheet].src) return run.sheets[sheet].src;
  if (!addresses.has(sheet)) {
    const bytes = atob(embedded[sheet].getAttribute("src").split(",")[1]);
    const blob = new Blob([Uint8Array.from(bytes, (each) => each.charCodeAt(0))], { type: "image/jpeg" });
    addresses.set(sheet, URL.createObjectURL(blob));
  }
  return addresses.get(sheet);
}

function paint(thumb) {
  const place = places[Number(thumb.dataset.image)];
  const number = sheetOf(place);
  const { first, columns, count } = run.sheets[number];
  const rows = Math.ceil(count / columns);
  const pitch = run.side + run.gap;
  const part = (length, index) => {
    const whole = length * pitch - run.gap;
    return [(100 * whole) / run.side, length > 1 ? (100 * index * pitch) / (whole - run.side) : 0];
  };
  const [width, x] = part(columns, (place - first) % columns);
  const [height, y] = part(rows, Math.floor((place - first) / columns));
  thumb.style.backgroundImage = `url("${address(number)}")`;
  thumb.style.backgroundSize = `${width}% ${height}%`;
  thumb.style.backgroundPosition = `${x}% ${y}%`;
}

const painter = new IntersectionObserver(
  (seen) => {
    for (const { isIntersecting, target } of seen) {
      if (!isIntersecting) continue;
      painter.unobserve(target);
      paint(target);
    }
  },
  { rootMargin: "300px" },
);

function fileOf(image) {
  return run.files ? run.files[image] : `${run.sample} ${image}`;
}

const percent = (thousandths) => `${Math.round(thousandths / 10)}%`;

function describe(image) {
  const label = run.labels ? `, class ${run.classes[run.labels[image]] ?? "unknown"}` : "";
  return `${fileOf(image)}, ${titleOf(clusterOf(image))}, ${percent(run.confidence[image])} sure${label}`;
}

function thumbnail(image) {
  if (!run.sheets.length) return element("span", { class: "thumb text" }, element("bdi", {}, fileOf(image)));
  const thumb = element("span", { class: run.side <= run.pixelated ? "thumb pixelated" : "thumb", "data-image": image });
  painter.observe(thumb);
  return thumb;
}

function tile(list, place, named) {
  const image = list[place];
  const caption = named ? [element("bdi", { class: "file" }, fileOf(image)), element("small", {}, percent(run.confidence[image]))] : [];
  const about = describe(image);
  return element("button", { class: "tile", type: "button", title: about, "aria-label": about, onclick: () => show(list, place) }, thumbnail(image), ...caption);
}

// A list of images, the next ones added as its end comes near.
function grid(list, { named = true, first = CHUNK } = {}) {
  const tiles = element("div", { class: named ? "tiles named" : "tiles" });
  const more = element("button", { type: "button", class: "more", onclick: () => add(CHUNK) });
  const watch = new IntersectionObserver((seen) => seen.some((each) => each.isIntersecting) && add(CHUNK), { rootMargin: "600px" });
  function add(count) {
    const start = tiles.childElementCount;
    const end = Math.min(list.length, start + count);
    for (let place = start; place < end; place++) tiles.append(tile(list, place, named));
    more.textContent = `${(list.length - end).toLocaleString("en")} more`;
    more.hidden = end === list.length;
    if (more.hidden) watch.disconnect();
  }
  add(first);
  if (!more.hidden) watch.observe(more);
  return element("div", {}, tiles, more);
}

// The dialog of one image.
const dialog = element("dialog", { "aria-label": "image" });
document.body.append(dialog);
let shown = { list: [], place: 0 };

function show(list, place) {
  shown = { list, place };
  const image = list[place];
  const large = element("div", { class: "large" }, thumbnail(image));
  if (run.links?.[image]) {
    const original = element("img", { alt: "", onload: () => large.append(original) });
    original.src = run.base + run.links[image]; // where the page lies beside the originals it shows them
  }
  const [first, second] = [run.cluster[image], run.second[image]];
  const facts = [
    element("p", {}, "In ", element("b", { class: "title", "data-cluster": clusterOf(image) }, titleOf(clusterOf(image))), image in made.moved ? ", moved there" : ""),
    element("p", {}, "The model: ", element("span", { class: "title", "data-cluster": first }, titleOf(first)), ` ${percent(run.confidence[image])}`),
  ];
  if (second >= 0) {
    facts.push(element("p", {}, "second choice: ", element("span", { class: "title", "data-cluster": second }, titleOf(second)), ` ${percent(run.secondConfidence[image])}`));
  }
  if (run.labels) facts.push(element("p", {}, `Class: ${run.classes[run.labels[image]] ?? "unknown"}`));
  const name = element("bdi", {}, fileOf(image));
  const step = (by, text) =>
    element("button", { type: "button", disabled: !(place + by in list), "aria-label": by < 0 ? "previous" : "next", onclick: () => show(list, place + by) }, text);
  const again = () => show(list, place);
  const belongs = chooser("move to", "Belongs to…", (cluster) => (move(image, cluster), again()));
  const back = element("button", { type: "button", onclick: () => (move(image, root(first)), again()) }, "Undo the move");
  const close = element("button", { type: "button", class: "close", onclick: () => dialog.close() }, "Close");
  const near = neighbours(image);
  const parts = [
    element("div", { class: "steps" }, step(-1, "‹"), element("span", {}, `${place + 1} of ${list.length.toLocaleString("en")}`), step(1, "›"), close),
    large,
    element("h3", {}, run.links?.[image] ? element("a", { href: run.base + run.links[image], target: "_blank", rel: "noreferrer" }, name) : name),
    ...facts,
    element("p", {}, belongs, image in made.moved ? back : ""),
  ];
  if (near.length) parts.push(element("h3", {}, "Its neighbours"), grid(near, { named: false }));
  dialog.replaceChildren(...parts);
  if (!dialog.open) dialog.showModal();
  dialog.scrollTop = 0;
}

function neighbours(image) {
  return run.neighbours.slice(image * run.near, (image + 1) * run.near);
}

dialog.addEventListener("keydown", (event) => {
  const by = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
  if (by && event.target.tagName !== "SELECT" && shown.place + by in shown.list) show(shown.list, shown.place + by);
});
dialog.addEventListener("click", (event) => event.target === dialog && dialog.close());

// What the page becomes where scripts run.

const STRIP = 12; // images in a row of a cluster's
const DOUBTFUL = 48; // doubtful images at a time
const starts = [0];
for (const size of run.sizes) starts.push(starts[starts.length - 1] + size);
for (const each of document.querySelectorAll(".static")) each.hidden = true;

// The bar: search, what was named, the download.
const status = element("span", { role: "status" });
const search = element("input", { type: "search", placeholder: run.files ? "Find a file" : `Find a ${run.sample} by its number`, "aria-label": "find an image", oninput: () => find(search.value) });
const bar = document.getElementById("bar");
const results = element("section", { id: "found", hidden: true });
const apply = element("p", { class: "muted apply", hidden: true }, "Then: ", element("code", {}, `imc label ${run.command} names.json`));
const back = element("button", { type: "button", id: "back", onclick: () => confirm("Take back what was changed here?") && takeBack() }, "Undo all");
bar.append(search, element("span", { class: "save" }, status, back, element("button", { type: "button", id: "download", onclick: () => (download(), (apply.hidden = false)) }, "Download names")), apply);
document.querySelector("main").prepend(results);

function find(text) {
  const wanted = text.trim().toLowerCase();
  const found = [];
  for (let image = 0; wanted && image < run.cluster.length; image++) {
    if (run.files ? run.files[image].toLowerCase().includes(wanted) : String(image) === wanted) found.push(image);
  }
  results.hidden = !wanted;
  results.replaceChildren(element("h2", {}, `${found.length.toLocaleString("en")} found`), grid(found));
}

// Clusters: a row each of the most certain, of those between, and of the least certain; all when asked for.
function fillCluster(card) {
  const cluster = Number(card.dataset.cluster);
  const images = run.order.slice(starts[cluster], starts[cluster + 1]);
  const rows = [["most certain", 0]];
  if (images.length > 3 * STRIP) rows.push(["between", Math.floor((images.length - STRIP) / 2)]);
  if (images.length > STRIP) rows.push(["least certain", Math.max(STRIP, images.length - STRIP)]);
  const strips = element("div", {});
  for (const [title, start] of rows) {
    const part = images.slice(start, start + STRIP);
    const range = `${percent(run.confidence[part[0]])} to ${percent(run.confidence[part[part.length - 1]])}`;
    const list = element("div", { class: "tiles strip" });
    part.forEach((_, place) => list.append(tile(images, start + place, false)));
    strips.append(element("p", { class: "muted" }, `${title}, ${range}`), list);
  }
  const all = element("div", {});
  const text = `Show all ${images.length.toLocaleString("en")}`;
  const toggle = element("button", {
    type: "button",
    class: "all",
    "aria-expanded": "false",
    onclick: () => {
      const open = !all.childElementCount;
      all.replaceChildren(...(open ? [grid(images)] : []));
      strips.hidden = open;
      toggle.textContent = open ? "Show fewer" : text;
      toggle.setAttribute("aria-expanded", String(open));
    },
  }, text);
  card.append(strips, all, ...(images.length > STRIP ? [toggle] : []));
}

function nameControls(card) {
  const cluster = Number(card.dataset.cluster);
  const name = element("input", {
    type: "text",
    maxlength: 100,
    placeholder: "Name it",
    "aria-label": `name of cluster ${cluster}`,
    oninput: () => {
      const given = name.value.trim();
      name.setCustomValidity(problemOf(given));
      if (name.reportValidity()) nameCluster(cluster, given);
    },
  });
  const into = chooser(`merge cluster ${cluster} into`, "Merge into…", (other) => merge(cluster, other), cluster);
  const apart = element("button", { type: "button", onclick: () => merge(cluster, cluster) }, "Undo the merge");
  const check = element("input", { type: "checkbox", onchange: () => markWrong(cluster, check.checked) });
  const wrong = element("label", { title: "its images are no group: they get no name" }, check, " wrong");
  const refresh = () => {
    const merged = cluster in made.merged;
    if (document.activeElement !== name) name.value = made.names[cluster] ?? "";
    name.hidden = into.hidden = wrong.hidden = merged;
    apart.hidden = !merged;
    check.checked = made.wrong.includes(cluster);
    card.classList.toggle("dropped", isWrong(cluster));
  };
  document.addEventListener("names", refresh);
  refresh();
  card.querySelector("h3").after(element("p", { class: "controls" }, name, into, apart, wrong));
}

const filler = new IntersectionObserver(
  (seen) => {
    for (const { isIntersecting, target } of seen) {
      if (!isIntersecting) continue;
      filler.unobserve(target);
      fillCluster(target);
    }
  },
  { rootMargin: "800px" },
);
for (const card of document.querySelectorAll("article.cluster")) {
  nameControls(card);
  filler.observe(card);
}

// Doubtful images, and what to do with each.
function doubtful(section) {
  const list = run.doubtful;
  const rows = element("div", { class: "doubts" });
  const more = element("button", { type: "button", class: "more", onclick: () => add() });
  const choice = (image, cluster, sure) => {
    const button = element("button", { type: "button", onclick: () => move(image, root(cluster)) }, element("span", { class: "title", "data-cluster": cluster }, titleOf(cluster)), ` ${percent(sure)}`);
    const refresh = () => button.setAttribute("aria-pressed", String(clusterOf(image) === root(cluster)));
    document.addEventListener("names", refresh);
    refresh();
    return button;
  };
  function add() {
    const start = rows.childElementCount;
    const end = Math.min(list.length, start + DOUBTFUL);
    for (let place = start; place < end; place++) {
      const image = list[place];
      const choices = [choice(image, run.cluster[image], run.confidence[image]), choice(image, run.second[image], run.secondConfidence[image])];
      rows.append(element("div", { class: "doubt" }, tile(list, place, false), element("div", {}, element("bdi", { class: "file" }, fileOf(image)), ...choices)));
    }
    more.textContent = `${(list.length - end).toLocaleString("en")} more`;
    more.hidden = end === list.length;
  }
  add();
  section.append(rows, more);
}

function nearlySame(section) {
  for (const group of run.duplicates) section.append(element("div", { class: "group" }, grid(group)));
}

// The sections further down are made when they come near.
function later(id, make) {
  const section = document.getElementById(id);
  if (!section) return;
  const watch = new IntersectionObserver((seen) => {
    if (!seen.some((each) => each.isIntersecting)) return;
    watch.disconnect();
    make(section);
  }, { rootMargin: "600px" });
  watch.observe(section);
}
if (run.doubtful.length) later("doubtful", doubtful);
later("nearly-same", nearlySame);
later("map", drawMap);

document.addEventListener("names", () => {
  status.textContent = summary();
  back.hidden = !isNew();
});
document.dispatchEvent(new Event("names"));

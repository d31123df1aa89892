// The viewer of a report. NiiVue draws the scan; this file draws the landmarks over it, and fills
// the controls and the list. It runs at the end of the page, and fetches nothing.
//
// Three frames of coordinates: "ijk", voxels of the shown volume (x to the left, y to the back,
// z to the head, as in Python); "view", NiiVue's RAS millimetres from the volume's rightmost,
// rearmost, lowest voxel; "scan", LPS millimetres of the scan's own world.
"use strict";

(async () => {
  const AXIAL = 0, CORONAL = 1, SAGITTAL = 2, MULTIPLANAR = 3, RENDER = 4;
  const VIEWS = {
    all: MULTIPLANAR, axial: AXIAL, coronal: CORONAL, sagittal: SAGITTAL, mip: RENDER,
  };
  // Of "view": across the picture, up it, and through it.
  const AXES = { [AXIAL]: [0, 1, 2], [CORONAL]: [0, 2, 1], [SAGITTAL]: [1, 2, 0] };
  // Voxels from a slice beyond which a mark is not drawn.
  const FAR = 3;
  const LIGHT = "#f4f6f8", ERROR = "#ffe066", CROSSHAIR = "#5aa9e6";
  // What makes a MIP of NiiVue's rendering, which accumulates colours along a ray and starts at
  // random: the brightest sample is kept, premultiplied as it is, and a ray goes on to its end.
  const MIP = [
    ["colAcc= (1.0 - colAcc.a) * colorSample + colAcc;",
      "colAcc = max(colAcc, vec4(colorSample.rgb / colorSample.a, 0.94));"],
    ["float ran = fract(", "float ran = 0.0 * fract("],
  ];

  const at = (id) => document.getElementById(`viewer-${id}`);
  const root = document.getElementById("viewer");
  const page = root.closest("section");
  const canvas = at("canvas"), marks = at("marks");
  let data, nv, shown, chosen = -1, loading = 0;

  if (!window.WebGL2RenderingContext || !window.DecompressionStream) {
    return refuse("this browser has no WebGL 2");
  }
  const probe = document.createElement("canvas").getContext("webgl2");
  if (!probe) return refuse("WebGL 2 is off in this browser");
  probe.getExtension("WEBGL_lose_context")?.loseContext();
  try {
    data = JSON.parse(at("data").textContent);
    await addNiivue();
    root.hidden = false;
    page.classList.add("viewing");
    await start();
    await show(0);
  } catch (error) {
    root.hidden = true;
    page.classList.remove("viewing");
    refuse(error.message);
  }

  function refuse(why) {
    at("problem").textContent = `Pictures instead of the interactive viewer: ${why}.`;
    at("problem").hidden = false;
  }

  function bytesOf(id) {
    return Uint8Array.from(atob(at(id).textContent), (letter) => letter.charCodeAt(0));
  }

  // The page's policy lets this very text run, by its hash.
  async function addNiivue() {
    const packed = new Blob([bytesOf("niivue")]).stream();
    const script = document.createElement("script");
    script.textContent = await new Response(
      packed.pipeThrough(new DecompressionStream("gzip"))).text();
    document.head.append(script);
    if (!window.niivue) throw new Error("its program was not let run");
  }

  async function start() {
    nv = new niivue.Niivue({
      logLevel: "silent", loadingText: "", dragAndDropEnabled: false, scrollRequiresFocus: true,
      viewModeHotKey: "", clipPlaneHotKey: "", cycleClipPlaneHotKey: "",
      // This file draws its own, which is thin, and open where the mark is.
      crosshairWidth: 0, isOrientCube: true,
      backColor: [0, 0, 0, 1], fontColor: [1, 0.82, 0.4, 1], fontMinPx: 14,
      isRadiologicalConvention: true, sagittalNoseLeft: true, isSliceMM: true,
      showAllOrientationMarkers: true, multiplanarLayout: 2, multiplanarShowRender: 1,
      multiplanarPadPixels: 4, dragMode: 9,
    });
    const prototype = WebGL2RenderingContext.prototype, source = prototype.shaderSource;
    prototype.shaderSource = function (shader, text) {
      source.call(this, shader, MIP.reduce((made, [from, to]) => made.replace(from, to), text));
    };
    try {
      await nv.attachToCanvas(canvas);
    } finally {
      prototype.shaderSource = source;
    }
    const drawScene = nv.drawScene.bind(nv);
    nv.drawScene = () => {
      const text = drawScene();
      drawMarks();
      return text;
    };
    nv.onLocationChange = tellPlace;
    data.cases.forEach((known, n) => at("case").add(new Option(known.title, n)));
    at("case").onchange = ({ target }) =>
      show(Number(target.value)).catch((error) => refuse(error.message));
    at("view").onchange = (event) => nv.setSliceType(VIEWS[event.target.value]);
    at("zoom").oninput = zoom;
    for (const id of ["truth", "predicted", "radii"]) at(id).onchange = () => nv.drawScene();
    at("labels").onchange = showLabels;
  }

  // A case: its volume, its list, and the crosshair at its worst landmark.
  async function show(n) {
    const mine = ++loading, known = data.cases[n];
    const volume = await image(`scan-${n}`, {
      colormap: "gray", cal_min: known.window[0], cal_max: known.window[1],
    });
    let labels = null;
    if (known.segments.length) {
      labels = await image(`labels-${n}`, { opacity: 0 });
      const colors = [[0, 0, 0], ...known.segments.map((segment) => segment.color)];
      labels.setColormapLabel({
        R: colors.map((c) => c[0]), G: colors.map((c) => c[1]), B: colors.map((c) => c[2]),
        A: colors.map((_, index) => (index ? 255 : 0)), I: colors.map((_, index) => index),
        labels: ["", ...known.segments.map((segment) => segment.name)],
      });
    }
    // Another case was asked for meanwhile.
    if (mine !== loading) return;
    // What a double-click goes back to.
    [volume.robust_min, volume.robust_max] = known.window;
    while (nv.volumes.length) nv.removeVolumeByIndex(nv.volumes.length - 1);
    shown = known;
    nv.addVolume(volume);
    if (labels) nv.addVolume(labels);
    at("labels-shown").hidden = !labels;
    showLabels();
    nv.setRenderAzimuthElevation(180, 0);
    // Corners may leave the picture when it is turned.
    nv.setScale(1.25);
    at("case").value = n;
    at("doubts").textContent = known.doubts.length ? `Doubtful: ${known.doubts.join("; ")}` : "";
    list();
  }

  function image(id, options) {
    const base64 = at(id).textContent;
    return niivue.NVImage.loadFromBase64({ base64, name: `${id}.nii.gz`, ...options });
  }

  function showLabels() {
    if (nv.volumes.length > 1) nv.setOpacity(1, at("labels").checked ? 0.5 : 0);
  }

  // Rows from the largest error to the smallest, then those without truth.
  function list() {
    const order = shown.landmarks.map((_, k) => k);
    order.sort((a, b) => (shown.landmarks[b].error_mm ?? -1) - (shown.landmarks[a].error_mm ?? -1));
    at("landmarks").replaceChildren(...order.map((k) => {
      const landmark = shown.landmarks[k], row = document.createElement("tr");
      const button = document.createElement("button");
      button.textContent = landmark.name;
      row.insertCell().append(button);
      const { error_mm: error, radius_mm: radius, presence } = landmark;
      const beyond = error !== null && radius !== null && error > radius;
      const none = landmark.absent ? "absent" : "–";
      number(row, error === null ? none : error.toFixed(2), beyond ? "beyond" : "");
      number(row, radius === null ? "–" : radius.toFixed(2));
      number(row, presence === null ? "–" : presence.toFixed(2));
      if (beyond) row.cells[1].title = "beyond the stated radius";
      row.dataset.landmark = k;
      row.onclick = () => choose(k);
      return row;
    }));
    const columns = at("landmarks").closest("table").classList;
    columns.toggle("no-radius", shown.landmarks.every((each) => each.radius_mm === null));
    columns.toggle("no-presence", shown.landmarks.every((each) => each.presence === null));
    chosen = -1;
    choose(order[0]);
  }

  function number(row, text, name = "") {
    const cell = row.insertCell();
    cell.textContent = text;
    cell.className = `n ${name}`.trim();
  }

  // The first time the true place, if it is known; the second time the predicted one.
  function choose(k) {
    const { truth, predicted } = shown.landmarks[k];
    const rows = [...at("landmarks").rows];
    const row = rows.find((each) => Number(each.dataset.landmark) === k);
    const second = chosen === k && row.dataset.place !== "predicted";
    for (const each of rows) {
      each.classList.toggle("chosen", each === row);
      delete each.dataset.place;
    }
    chosen = k;
    row.dataset.place = second || !truth ? "predicted" : "truth";
    nv.scene.crosshairPos = nv.mm2frac(toView(row.dataset.place === "truth" ? truth : predicted));
    nv.createOnLocationChange();
    zoom();
  }

  // About the crosshair; without zoom the whole volume is in the pictures.
  function zoom() {
    const factor = Number(at("zoom").value), middle = nv.frac2mm([0.5, 0.5, 0.5]);
    const here = nv.frac2mm(nv.scene.crosshairPos);
    const pan = [0, 1, 2].map((axis) => (factor > 1 ? middle[axis] - factor * here[axis] : 0));
    nv.setPan2Dxyzmm([...pan, factor]);
    nv.drawScene();
  }

  function toView(ijk) {
    const [sx, sy, sz] = shown.spacing_mm, [nx, ny] = shown.shape;
    return [(nx - 1 - ijk[0]) * sx, (ny - 1 - ijk[1]) * sy, ijk[2] * sz];
  }

  function toScan(view) {
    const [sx, sy, sz] = shown.spacing_mm, [nx, ny] = shown.shape;
    const ijk = [nx - 1 - view[0] / sx, ny - 1 - view[1] / sy, view[2] / sz];
    return shown.ijk_to_lps.slice(0, 3).map(
      (row) => row[0] * ijk[0] + row[1] * ijk[1] + row[2] * ijk[2] + row[3]);
  }

  function tellPlace() {
    if (!shown) return;
    const here = nv.frac2mm(nv.scene.crosshairPos);
    const place = toScan(here).map((value) => value.toFixed(1));
    const row = at("landmarks").querySelector(".chosen"), landmark = shown.landmarks[chosen];
    const marked = row && toView(landmark[row.dataset.place]);
    // A click in a picture moves the crosshair away from the chosen landmark.
    const isThere = marked && marked.every((mm, axis) => Math.abs(mm - here[axis]) < 0.05);
    const name = isThere ? `${landmark.name} (${row.dataset.place}); ` : "";
    at("place").textContent =
      `${name}crosshair at ${place.join(", ").replaceAll("-", "−")} mm (LPS of the scan)`;
  }

  function drawMarks() {
    if (marks.width !== canvas.width || marks.height !== canvas.height) {
      [marks.width, marks.height] = [canvas.width, canvas.height];
    }
    const pen = marks.getContext("2d");
    pen.clearRect(0, 0, marks.width, marks.height);
    if (!shown) return;
    for (const tile of nv.screenSlices) {
      pen.save();
      pen.beginPath();
      pen.rect(...tile.leftTopWidthHeight);
      pen.clip();
      const place = tile.axCorSag === RENDER ? inRendering(tile) : inSlice(tile);
      crosshair(pen, place(nv.frac2mm(nv.scene.crosshairPos)), tile.leftTopWidthHeight);
      const ofVoxels = (ijk) => place(toView(ijk));
      // The chosen one last: above the others.
      shown.landmarks.forEach((each, k) => k === chosen || mark(pen, ofVoxels, each, false));
      if (chosen >= 0) mark(pen, ofVoxels, shown.landmarks[chosen], true);
      pen.restore();
    }
  }

  // "view" -> pixels {x, y}, pixels a mm, voxels and mm from the slice.
  function inSlice(tile) {
    const [across, up, through] = AXES[tile.axCorSag];
    const [left, top, width, height] = tile.leftTopWidthHeight;
    const here = nv.frac2mm(nv.scene.crosshairPos)[through];
    const scale = Math.abs(width / tile.fovMM[0]);
    return (view) => {
      const away = Math.abs(view[through] - here);
      return {
        x: left + (width * (view[across] - tile.leftTopMM[0])) / tile.fovMM[0],
        y: top + height * (1 - (view[up] - tile.leftTopMM[1]) / tile.fovMM[1]),
        scale, away, voxels: away / shown.spacing_mm[through], right: left + width,
      };
    };
  }

  function inRendering(tile) {
    const box = tile.leftTopWidthHeight, [left, top, width, height] = box;
    const { renderAzimuth, renderElevation } = nv.scene;
    const [m] = nv.calculateMvpMatrix(null, box, renderAzimuth, renderElevation);
    const scale = (Math.hypot(m[0], m[4], m[8]) * width) / 2;
    return ([x, y, z]) => {
      return {
        x: left + (width * (1 + m[0] * x + m[4] * y + m[8] * z + m[12])) / 2,
        y: top + (height * (1 - (m[1] * x + m[5] * y + m[9] * z + m[13]))) / 2,
        scale, away: 0, voxels: 0, right: left + width,
      };
    };
  }

  function crosshair(pen, place, [left, top, width, height]) {
    const ratio = canvas.width / canvas.clientWidth, gap = 10 * ratio;
    // Between pixels a line would be two, and pale.
    const [x, y] = [Math.floor(place.x) + 0.5, Math.floor(place.y) + 0.5];
    pen.strokeStyle = CROSSHAIR;
    pen.lineWidth = ratio;
    pen.beginPath();
    for (const [x0, y0, x1, y1] of [
      [left, y, x - gap, y], [x + gap, y, left + width, y],
      [x, top, x, y - gap], [x, y + gap, x, top + height],
    ]) {
      pen.moveTo(x0, y0);
      pen.lineTo(x1, y1);
    }
    pen.stroke();
  }

  function mark(pen, place, landmark, isChosen) {
    const ratio = canvas.width / canvas.clientWidth;
    const truth = landmark.truth && at("truth").checked ? place(landmark.truth) : null;
    const predicted = place(landmark.predicted);
    if (at("radii").checked && landmark.radius_mm !== null) {
      // A sphere is cut by the slice.
      const radius = Math.sqrt(Math.max(0, landmark.radius_mm ** 2 - predicted.away ** 2));
      const [alpha, width] = isChosen ? [1, 1.6 * ratio] : [0.55, ratio];
      ring(pen, predicted, radius * predicted.scale, alpha, width);
    }
    if (isChosen && truth && at("predicted").checked) {
      pen.strokeStyle = ERROR;
      pen.lineWidth = 1.2 * ratio;
      pen.beginPath();
      pen.moveTo(truth.x, truth.y);
      pen.lineTo(predicted.x, predicted.y);
      pen.stroke();
    }
    if (truth) dot(pen, truth, data.truth, (isChosen ? 5.5 : 4.5) * ratio, isChosen);
    if (at("predicted").checked) {
      dot(pen, predicted, data.prediction, (isChosen ? 4 : 3) * ratio, isChosen);
      if (isChosen) label(pen, predicted, landmark.name, ratio);
    }
  }

  function ring(pen, { x, y }, radius, alpha, width) {
    if (radius <= 0) return;
    pen.globalAlpha = alpha;
    pen.strokeStyle = LIGHT;
    pen.lineWidth = width;
    pen.beginPath();
    pen.arc(x, y, radius, 0, 2 * Math.PI);
    pen.stroke();
    pen.globalAlpha = 1;
  }

  // Full in its slice, then fainter; of the chosen landmark a ring where it is in another slice.
  function dot(pen, { x, y, voxels }, color, radius, isChosen) {
    const inside = voxels <= 0.5;
    if (voxels > FAR && !isChosen) return;
    pen.globalAlpha = inside || isChosen ? 1 : 0.6 * (1 - voxels / (FAR + 1));
    pen.beginPath();
    pen.arc(x, y, radius, 0, 2 * Math.PI);
    if (voxels > FAR) {
      pen.strokeStyle = color;
      pen.lineWidth = radius / 2.5;
      pen.stroke();
    } else {
      pen.fillStyle = color;
      pen.fill();
      pen.strokeStyle = "#000000b0";
      pen.lineWidth = radius / 5;
      pen.stroke();
    }
    pen.globalAlpha = 1;
  }

  function label(pen, { x, y, right }, name, ratio) {
    pen.font = `600 ${13 * ratio}px system-ui, sans-serif`;
    pen.textBaseline = "bottom";
    pen.lineWidth = 3 * ratio;
    pen.strokeStyle = "#000000c0";
    pen.fillStyle = LIGHT;
    const start = Math.min(x + 7 * ratio, right - pen.measureText(name).width - 4 * ratio);
    pen.strokeText(name, start, y - 5 * ratio);
    pen.fillText(name, start, y - 5 * ratio);
  }
})();

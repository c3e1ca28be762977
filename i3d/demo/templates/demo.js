"use strict";
// Videos play on a click, or all at once. A line follows the longer one through its timeline, and a
// click there is where it goes on.
// Without this script they have the browser's own controls.
(() => {
  const samples = [...document.querySelectorAll(".samples video")];
  const all = document.getElementById("play-all");
  const showState = () => {
    all.textContent = samples.some((video) => video.paused) ? "Play all" : "Pause all";
  };
  for (const video of samples) {
    const button = document.createElement("button");
    button.type = "button";
    button.className = "play";
    const label = () => {
      const action = video.getAttribute("aria-label");
      button.setAttribute("aria-label", `${video.paused ? "Play" : "Pause"} ${action}`);
      showState();
    };
    button.addEventListener("click", () => (video.paused ? video.play() : video.pause()));
    video.addEventListener("play", label);
    video.addEventListener("pause", label);
    video.controls = false;
    video.after(button);
    label();
  }
  all.parentElement.hidden = false;
  all.addEventListener("click", () => {
    const start = samples.some((video) => video.paused);
    for (const video of samples) {
      if (start) video.play();
      else video.pause();
    }
  });

  const sequence = document.getElementById("sequence");
  const timeline = document.querySelector(".i3d-timeline");
  const { left, scale, bottom } = timeline.dataset;
  const { width } = timeline.viewBox.baseVal;
  const playhead = document.createElementNS("http://www.w3.org/2000/svg", "path");
  playhead.id = "playhead";
  playhead.setAttribute("d", `M${left} 0V${bottom}`);
  playhead.setAttribute("visibility", "hidden");
  timeline.append(playhead);
  const move = () => {
    playhead.setAttribute("transform", `translate(${scale * sequence.currentTime} 0)`);
    playhead.setAttribute("visibility", "visible");
    if (!sequence.paused) requestAnimationFrame(move);
  };
  sequence.addEventListener("play", move);
  sequence.addEventListener("seeked", move);
  timeline.classList.add("seekable");
  timeline.addEventListener("click", (event) => {
    const box = timeline.getBoundingClientRect();
    const x = ((event.clientX - box.left) / box.width) * width;
    if (x >= left) sequence.currentTime = (x - left) / scale;
  });
})();

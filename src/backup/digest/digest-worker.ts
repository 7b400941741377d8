/** The script of the threads that digest-threads.ts starts. */

import { workerData } from "node:worker_threads";
import { answerQuestions } from "../threads/thread-side.js";
import { DigestService } from "./digest-service.js";
import type { DigestWorkerData } from "./digest-threads.js";

answerQuestions(new DigestService((workerData as DigestWorkerData).algorithm));

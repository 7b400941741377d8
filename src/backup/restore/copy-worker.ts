/** The script of the threads that `copy-threads.ts` starts. */

import { answerQuestions } from "../threads/thread-side.js";
import { CopyService } from "./copy-service.js";

answerQuestions(new CopyService());
